"""Does every row teach what it should? A row that does not stops the run before the model is loaded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import ControlTokens, Data
from finetune.data.splits import Example, Splits
from finetune.errors import UserError, raise_problems
from finetune.model.shared_prefix_attention import common_prefix_length
from finetune.secrets import without_secrets
from finetune.training.tokenize import IGNORE_INDEX, TokenizedRows, prompt_tokens, truncation_length


class TokenizedExample(NamedTuple):
    """One example with its tokens and labels, not cut."""

    example: Example
    tokens: list[int]
    labels: list[int]


@dataclass(frozen=True)
class RowReader:
    """What rows are checked with: the tokenizer, the tokens that end an answer, and how rows were prepared."""

    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    settings: SFTConfig

    def decode(self, tokens: list[int]) -> str:
        """The tokens as text, special ones included, quoted and cut to a readable length."""
        text = repr(without_secrets(str(self.tokenizer.decode(tokens))))
        return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"


def check_rows(data: Data, splits: Splits, rows: TokenizedRows, reader: RowReader) -> None:
    """Raise one UserError that names every fault: how many rows have it, one of them, and what to do."""
    problems = []
    for name, whole in rows.whole.items():
        columns = getattr(splits, name), whole["input_ids"], whole["labels"]
        tokenized = [TokenizedExample(*row) for row in zip(*columns, strict=True)]
        problems += [*_faults(name, tokenized, reader), *_cut(name, tokenized, data.max_cut_share, reader.settings)]
    raise_problems(problems)


def template_notes(splits: Splits, rows: TokenizedRows, reader: RowReader) -> Iterator[str]:
    """What the chat template makes the model write before its answer, to judge by the first training row."""
    example, tokens = splits.train[0], rows.whole["train"][0]["input_ids"]
    if not example.prompt:
        return
    answer_tokens = tokens[len(prompt_tokens(example.prompt, reader.tokenizer)) :]
    answer = str(reader.tokenizer.decode(answer_tokens, skip_special_tokens=True))
    before = answer.partition(example.completion.strip())[0]
    if before.strip() and before != answer:
        yield (
            f"the chat template has the model write {before!r} before each answer, which is scored with it. If a "
            "variable of the template turns that off, set it: model.chat_template_kwargs.enable_thinking=false, say"
        )


def require_template(tokenizer: PreTrainedTokenizerBase, splits: Splits, plain_prompt: bool) -> None:
    """Raise UserError for prompts and a tokenizer that has no chat template to put them in."""
    if splits.train[0].prompt and not tokenizer.chat_template and not plain_prompt:
        raise UserError(
            "This model's tokenizer has no chat template, so nothing says how a prompt and its answer are told apart. "
            "Give it one with trainer.chat_template_path=FILE.jinja, or write model.plain_prompt=true to put the "
            "messages one a line."
        )


def guard_control_tokens(splits: Splits, tokenizer: PreTrainedTokenizerBase, policy: ControlTokens) -> Splits:
    """The splits with control tokens inside their texts escaped or left, and counted; a UserError refuses them."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, control)))
    examples = (*splits.train, *splits.validation, *splits.test)
    affected = [(example, token) for example in examples if (token := _control_token(example, pattern))]
    splits = replace(splits, counts=splits.counts | {"with control tokens": len(affected)})
    if not affected or policy is ControlTokens.allow:
        return splits
    if policy is ControlTokens.error:
        example, token = affected[0]
        raise UserError(
            f"{example.place}: the text holds {token}, which this model reads as a control token; so do "
            f"{len(affected)} rows in all. Take it out, or write data.control_tokens=escape to have it read as text "
            "(allow: as the control token)."
        )
    parts = (splits.train, splits.validation, splits.test)
    train, validation, test = ([_escape(example, pattern) for example in part] for part in parts)
    return replace(splits, train=train, validation=validation, test=test)


def _control_token(example: Example, pattern: re.Pattern[str]) -> str | None:
    texts = (*(message["content"] for message in example.prompt), example.completion)
    return next((match.group() for text in texts if (match := pattern.search(text))), None)


def _escape(example: Example, pattern: re.Pattern[str]) -> Example:
    def escape(text: str) -> str:  # a zero-width space behind the first letter has a token read as text
        return pattern.sub(lambda match: f"{match.group()[0]}\u200b{match.group()[1:]}", text)

    prompt = [message | {"content": escape(message["content"])} for message in example.prompt]
    return replace(example, prompt=prompt, completion=escape(example.completion))


def _without_loss(row: TokenizedExample, reader: RowReader) -> str | None:
    return None if set(row.labels) - {IGNORE_INDEX} else f"its tokens: {reader.decode(row.tokens)}"


def _without_end(row: TokenizedExample, reader: RowReader) -> str | None:
    last = max((i for i, token in enumerate(row.tokens) if token in reader.ends), default=-1)
    if last < 0 or str(reader.tokenizer.decode(row.tokens[last + 1 :])).strip():
        return f"it ends with {reader.decode(row.tokens[-6:])}, no end token"
    if row.labels[last] == IGNORE_INDEX:
        return f"it ends with {reader.decode(row.tokens[-6:])}, an end token without loss"
    return None


def _other_prompt(row: TokenizedExample, reader: RowReader) -> str | None:
    prompt = prompt_tokens(row.example.prompt, reader.tokenizer) if row.example.prompt else []
    same = common_prefix_length([prompt, row.tokens])
    if same == len(prompt):
        return None
    return (
        f"after {same} equal tokens generation reads {reader.decode(prompt[same : same + 8])} "
        f"where training reads {reader.decode(row.tokens[same : same + 8])}"
    )


def _learns_prompt(row: TokenizedExample, reader: RowReader) -> str | None:
    if not row.example.prompt or reader.settings.completion_only_loss is False or reader.settings.assistant_only_loss:
        return None
    first = next(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
    prompt_length = len(prompt_tokens(row.example.prompt, reader.tokenizer))
    return None if first >= prompt_length else f"loss begins {prompt_length - first} tokens before the answer"


TEMPLATE = "Give a chat template that does with trainer.chat_template_path=FILE.jinja"
# What is wrong, what to do, and what finds it in a row: a detail, or None. A row's first fault hides the later ones.
FAULTS = (
    (
        "no token carries loss",
        "Leave out trainer.assistant_only_loss and trainer.completion_only_loss, or repair the chat template",
        _without_loss,
    ),
    (
        "the model would never learn to stop: the answer does not end with an end token that carries loss",
        f"{TEMPLATE}, or name the token that ends an answer in trainer.eos_token",
        _without_end,
    ),
    (
        "the prompt in training is not the prompt that generation reads",
        f"{TEMPLATE}: with add_generation_prompt it must yield the beginning of the whole conversation",
        _other_prompt,
    ),
    ("the prompt carries loss", "Leave out trainer.completion_only_loss, or repair the chat template", _learns_prompt),
)


def _faults(split: str, rows: list[TokenizedExample], reader: RowReader) -> Iterator[str]:
    unexplained = rows
    for problem, remedy, find_fault in FAULTS:
        details = [(row, find_fault(row, reader)) for row in unexplained]
        unexplained = [row for row, detail in details if detail is None]
        if faulty := [(row.example.place, detail) for row, detail in details if detail is not None]:
            place, detail = faulty[0]
            yield f"{place}: {problem} ({detail}); {_share(len(faulty), len(rows), split)}. {remedy}."


def _cut(split: str, rows: list[TokenizedExample], allowed: float, settings: SFTConfig) -> Iterator[str]:
    limit = truncation_length(settings)
    if split == "test" or not limit:
        return
    cut = [row for row in rows if len(row.tokens) > limit]
    if len(cut) > allowed * len(rows):
        longest = max(cut, key=lambda row: len(row.tokens))
        yield (
            f"{longest.example.place}: its answer is cut off at trainer.max_length={limit}, it has "
            f"{len(longest.tokens)} tokens; {_share(len(cut), len(rows), split)}, more than data.max_cut_share="
            f"{allowed:g}. Write trainer.max_length={len(longest.tokens)}, shorten the rows, or raise "
            "data.max_cut_share."
        )


def _share(count: int, of: int, split: str) -> str:
    return f"so with {count:,} of {of:,} {split} rows ({count / of:.1%})"
