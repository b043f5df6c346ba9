"""How does a user learn what is wrong?"""

import difflib
import json
from collections.abc import Collection, Iterable

from finetune.secrets import without_secrets


class UserError(Exception):
    """A mistake of the user's, printed as one paragraph without a stack; the program ends with exit code 2."""


LONGEST_VALUE = 60  # characters of a value in a message


def raise_problems(problems: list[str]) -> None:
    """Raise one UserError with all `problems`, if there are any."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)]))


def nearest_option(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that is spelt most like `word`; None where none has at least the similarity `cutoff`, from 0 to 1."""
    return next(iter(difflib.get_close_matches(word, list(options), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, options: Iterable[str], prefix: str = "") -> str:
    """` Did you mean <prefix>X?` of the option X nearest to `word`, or nothing where none is like it."""
    nearest = nearest_option(word, options)
    return f" Did you mean {prefix}{nearest}?" if nearest else ""


def suggest_and_list(word: str, options: Collection[str], prefix: str = "") -> str:
    """` Did you mean <prefix>X?` of the nearest option, where there is one, and the list of all options."""
    return f"{did_you_mean(word, options, prefix)} There are {', '.join(options)}."


def suggest_or_list(word: str, options: Collection[str]) -> str:
    """` Did you mean X?` of the nearest option, or the list of all options where none is like `word`."""
    return did_you_mean(word, options) or f" There is: {', '.join(options)}."


def describe_value(value: object) -> str:
    """A value in words that a user knows, cut to a readable length: `the number 12`, `the text "abc"`."""
    shown = json.dumps(without_secrets(value), ensure_ascii=False, default=str)
    shown = shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 3] + "..."
    shown = shown.encode(errors="backslashreplace").decode()  # half of a surrogate pair cannot be printed
    if value is None or isinstance(value, bool):
        return shown
    kinds = {str: "the text", int: "the number", float: "the number", list: "the list", dict: "the object"}
    return f"{kinds.get(type(value), type(value).__name__)} {shown}"
