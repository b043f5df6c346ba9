"""Which examples are trained on, which select the best checkpoint, and which are held out?

Rows are read strictly, turned into examples by a recipe of data_recipes/, and split so that the same prompt, or the
same group, never stands on two sides. Whatever is left out is counted.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config.schema import BadRows, ControlTokens, Data, Source
from finetune.data.checksums import sha256_of_file
from finetune.data.columns import check_group, check_row, find_columns, find_recipe
from finetune.data.control_characters import CONTROL_CHARACTER, name_character, replace_control_characters
from finetune.data.embedded import embedded_data
from finetune.data.rows import Row, RowError, read_hub_rows, read_rows, require_file
from finetune.errors import UserError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
BAD_ROWS_SHOWN = 3


@dataclass(frozen=True)
class Example:
    """One prompt and the completion that is learnt, with the place that it was read from."""

    prompt: list[Message]
    completion: str
    place: str
    group: str | None = None


@dataclass(frozen=True)
class Splits:
    """The examples of the three splits, what was counted on the way, and a checksum over all their contents.

    counts: rows (read), bad (left out: wrong, see data.bad_rows), repeated (left out: same prompt and completion as
    another), cut (left out by data.max_train_rows), train, validation, test, and with control characters, if any.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    counts: dict[str, int]
    fingerprint: str
    bad: list[str] = field(default_factory=list)  # what is wrong with the first of the bad rows, and where
    shared: list[str] = field(default_factory=list)  # what the splits have in common; see data/overlap.py


def load_splits(data: Data) -> Splits:
    """The three splits of a data set; the same rows and the same `data.seed` always give the same splits.

    Raises UserError, with file and line, for rows or columns that are wrong, and for too few rows.
    """
    reader = _Reader(data)
    test = reader.read(data.test) if data.test else []
    validation = reader.read(data.validation) if data.validation else []
    train = reader.read(None)
    reader.require_rows(train=train)
    rows_to_split = len(train)
    if not data.test:
        train, test = _hold_out(train, round(rows_to_split * data.test_fraction), "test", data.seed)
    if not data.validation:
        train, validation = _hold_out(train, round(rows_to_split * data.validation_fraction), "validation", data.seed)
    reader.require_rows(train=train, validation=validation, test=test)
    limit = data.max_train_rows
    if limit is not None and len(train) > limit:  # by a hash: a smaller limit chooses among a larger one's
        reader.counts["cut"] = len(train) - limit
        by_hash = sorted(range(len(train)), key=lambda index: _sha256([data.seed, _content(train[index])]))
        train = [train[index] for index in sorted(by_hash[:limit])]
    counts = dict(reader.counts) | {"train": len(train), "validation": len(validation), "test": len(test)}
    fingerprint = _sha256([[_content(example) for example in split] for split in (train, validation, test)])
    return Splits(train, validation, test, counts, fingerprint, reader.bad)


def data_digest(data: Data) -> str:
    """SHA-256 over the contents of the local files that `data` names, or "" where it names none."""
    if data.source is Source.hub:
        return ""
    files = [data.path if data.source is Source.local else None, data.validation, data.test]
    checksums = [sha256_of_file(require_file(Path(file).expanduser())) if file else "" for file in files]
    return _sha256(checksums) if any(checksums) else ""


class _Reader:
    """What is known while the rows of a data set are read, whatever files they lie in."""

    def __init__(self, data: Data) -> None:
        self.data, self.recipe = data, find_recipe(data)
        self.columns = find_columns(data, self.recipe)
        self.counts = Counter(rows=0, bad=0, repeated=0, cut=0)
        self.bad: list[str] = []
        self.group_kind: type | None = None

    def leave_out(self, message: str) -> None:
        """Count a row that is wrong and keep the first messages; raise where none, or no more, may be left out."""
        if self.data.bad_rows is BadRows.error:
            raise RowError(message)
        self.counts.update(rows=1, bad=1)
        if len(self.bad) < BAD_ROWS_SHOWN:
            self.bad.append(message)
        if self.counts["bad"] > self.data.max_bad_rows:
            raise UserError(
                f"More rows are bad than data.max_bad_rows={self.data.max_bad_rows} allows. Correct them, or raise the "
                f"limit. The first:{self.list_bad()}"
            )

    def list_bad(self) -> str:
        return "".join(f"\n  {message}" for message in self.bad)

    def require_rows(self, **splits: list[Example]) -> None:
        for name, examples in splits.items():
            if not examples:
                reasons = f", or bad:{self.list_bad()}" if self.bad else "."
                raise UserError(f"The {name} split has no rows left: all are repeated{reasons}")

    def read(self, held_out: str | None) -> list[Example]:
        """The examples of the training rows, or of the held-out file or split, without repeated ones."""
        examples: dict[object, Example] = {}
        name, numbered_rows = self.open_rows(held_out)
        for number, row in numbered_rows:
            place = f"{name}:{number}"
            try:
                example = self.to_example(row, place)
            except RowError as error:
                self.leave_out(f"{place}: {error}")
                continue
            key = (example.completion, *(tuple(message.items()) for message in example.prompt))
            self.counts.update(rows=1, repeated=int(key in examples))
            examples.setdefault(key, example)
        return list(examples.values())

    def open_rows(self, held_out: str | None) -> tuple[str, Iterator[tuple[int, Row]]]:
        """What stands for the file in places, and the rows with their numbers."""
        data, bad = self.data, self.leave_out
        if data.source is Source.hub:
            split = held_out or data.train_split
            return f"{data.path}[{split}]", read_hub_rows(data.path, data.subset, data.revision, split, bad)
        if held_out or data.source is Source.local:
            name = held_out or data.path
            return name, read_rows(Path(name).expanduser(), name, bad)
        file = embedded_data(data.path)
        return file.name, read_rows(file, file.name, bad)

    def to_example(self, row: Row, place: str) -> Example:
        """The example that the recipe reads from a row; raises RowError for a row that is wrong."""
        data, recipe = self.data, self.recipe
        mapped = check_row(row, self.columns, data)
        try:
            prompt, completion = recipe.read(mapped)
            group = recipe.group(mapped) if hasattr(recipe, "group") else None
        except ValueError as error:
            raise RowError(f"{error} (recipe {data.recipe}).") from error
        if data.system and not prompt:
            raise UserError(f"data.system is set, but the recipe {data.recipe} has no prompt: set data.system=''.")
        if data.system and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": data.system}, *prompt]
        prompt, completion = self.guard_control_characters(row, prompt, completion, place)
        if prompt and not any(message["content"].strip() for message in prompt if message["role"] != "system"):
            raise RowError(f"the prompt is empty, expected text to answer (recipe {data.recipe}).")
        if not completion.strip():
            raise RowError(f"the answer is empty, expected text to learn (recipe {data.recipe}).")
        if data.group is not None:
            value = check_group(row, data.group, self.group_kind)
            self.group_kind = type(value)
            group = json.dumps(value, ensure_ascii=False, default=str)
        return Example(prompt, completion, place, group)

    def guard_control_characters(
        self, row: Row, prompt: list[Message], completion: str, place: str
    ) -> tuple[list[Message], str]:
        """The texts with control characters replaced or left, and the row counted; a UserError refuses them."""
        parts = [
            *((f"the {message['role']} message", message["content"]) for message in prompt),
            ("the answer", completion),
        ]
        found = [(part, match[0]) for part, text in parts if (match := CONTROL_CHARACTER.search(text))]
        if not found:
            return prompt, completion
        if self.data.control_tokens is ControlTokens.error:
            part, character = found[0]
            columns = [f'"{key}"' for key, text in row.items() if isinstance(text, str) and character in text]
            raise UserError(
                f"{place}: {next(iter(columns), part)} holds {name_character(character)}, a control character; "
                "expected text. Take it out, or write data.control_tokens=escape to have a space in its place (allow: "
                "to keep it)."
            )
        self.counts["with control characters"] += 1
        if self.data.control_tokens is ControlTokens.allow:
            return prompt, completion
        escaped = [message | {"content": replace_control_characters(message["content"])} for message in prompt]
        return escaped, replace_control_characters(completion)


def _hold_out(examples: list[Example], share: int, split: str, seed: int) -> tuple[list[Example], list[Example]]:
    """Take about `share` rows, and at least one, out by whole groups; both parts stay in the order of the file.

    Groups are taken in the order of a hash of seed and name, so a row added later moves few others. A group joins where
    that brings the count nearer to `share`: one that is too large stays with the training rows.
    """
    groups = _groups(examples)
    sizes = Counter(groups)
    share, taken = max(1, share), 0
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda name: _sha256([seed, split, name])):
        if sizes[group] <= 2 * (share - taken):
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"The {len(examples)} different rows in {len(sizes)} groups are too few to hold {share} out for the "
            f"{split} split (data.{split}_fraction). Rows with the same prompt, or the same group, stay together. Add "
            f"rows, raise the fraction, name a column to group by in data.group, or give data.{split} rows of its own."
        )
    grouped = list(zip(examples, groups, strict=True))
    kept = [example for example, group in grouped if group not in chosen]
    return kept, [example for example, group in grouped if group in chosen]


def normalise_text(text: str) -> str:
    """The text without case, punctuation and extra whitespace; as it is where nothing else is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(" " if unicodedata.category(letter)[0] == "P" else letter for letter in folded)
    return " ".join(plain.split()) or text.strip()


def question_of(example: Example) -> str:
    """What the example asks, without the system message; of plain text, the text."""
    turns = [message["content"] for message in example.prompt if message["role"] != "system"]
    return "\n".join(turns) if turns else example.completion


def _groups(examples: list[Example]) -> list[str]:
    """For each example the name of those it stays together with: of the same prompt but for case, punctuation and
    whitespace, of the same group, and of what these share with others.
    """
    from scipy.cluster.hierarchy import DisjointSet

    prompts = [("prompt", normalise_text(question_of(example))) for example in examples]
    sets = DisjointSet(prompts)
    names: dict[tuple[str, str], str] = {}
    for prompt, example in zip(prompts, examples, strict=True):
        if example.group is not None:
            group = ("group", example.group)
            sets.add(group)
            name = names.get(sets[group], example.group)
            sets.merge(prompt, group)
            names[sets[prompt]] = name  # that of the last group that joined, so that splits stay as they were
    return [names.get(sets[prompt], prompt[1]) for prompt in prompts]


def _content(example: Example) -> str:
    return _sha256([example.prompt, example.completion])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
