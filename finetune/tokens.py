"""What exactly are the tokens of each row, and which of them carry loss?

TRL's own preparation, called before the model is loaded: what is checked and shown is what is trained on.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from finetune.chat import training_row
from finetune.data import Example, Splits

IGNORE = -100


@dataclass(frozen=True)
class Size:
    """What a split holds before truncation and packing; `truncated` counts the rows longer than `max_length`."""

    rows: int
    tokens: int
    loss_tokens: int
    truncated: int
    longest_answer: int


@dataclass(frozen=True)
class Rows:
    """The tokens of the splits `train`, `validation` and `test`, as columns `input_ids` and `labels`.

    whole: one row for each example, in their order, not cut. train and validation: the rows that the trainer reads,
    cut at `max_length` or packed.
    """

    whole: dict[str, Dataset]
    train: Dataset
    validation: Dataset
    sizes: dict[str, Size]


def apply_settings(settings: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the end token and the chat template that the settings name."""
    if settings.eos_token:
        tokenizer.eos_token = settings.eos_token
    if settings.chat_template_path:
        tokenizer.chat_template = Path(settings.chat_template_path).read_text(encoding="utf-8")


def tokenize(splits: Splits, tokenizer: PreTrainedTokenizerBase, settings: SFTConfig) -> Rows:
    """The tokens of all examples, prepared as `settings` say."""
    examples = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    whole = {name: _tokenize(some, tokenizer, settings, name) for name, some in examples.items()}
    packs = settings.packing if settings.eval_packing is None else settings.eval_packing
    shape = _Preparation(tokenizer, settings, whole=False)
    return Rows(
        whole,
        shape.run(whole["train"], settings.packing, "train"),
        shape.run(whole["validation"], packs, "validation"),
        {name: _size(rows, settings.max_length) for name, rows in whole.items()},
    )


class _Preparation(SFTTrainer):
    """As much of SFTTrainer as its preparation of rows needs, which is no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: SFTConfig, whole: bool) -> None:
        self._tokenizer = tokenizer
        self._settings = copy.copy(settings)
        if whole:
            self._settings.max_length = None
        self.completion_only_loss = settings.completion_only_loss is not False
        marked = not settings.assistant_only_loss or has_generation_markers(tokenizer.chat_template)
        self.chat_template = None if marked else get_training_chat_template(tokenizer)

    def run(self, rows: Dataset, packing: bool, name: str) -> Dataset:
        prepared: Dataset = self._prepare_dataset(rows, self._tokenizer, self._settings, packing, None, name)
        return prepared


def _tokenize(examples: list[Example], tokenizer: Any, settings: SFTConfig, name: str) -> Dataset:
    rows = [training_row(example, tokenizer, settings.assistant_only_loss) for example in examples]
    tokens = _Preparation(tokenizer, settings, whole=True).run(Dataset.from_list(rows), False, name)
    return tokens.select_columns(["input_ids", "labels"])


def _size(tokenized: Dataset, max_length: int | None) -> Size:
    lengths = [len(row) for row in tokenized["input_ids"]]
    answers = [sum(label != IGNORE for label in row[1:]) for row in tokenized["labels"]]
    truncated = sum(length > max_length for length in lengths) if max_length else 0
    return Size(len(lengths), sum(lengths), sum(answers), truncated, max(answers, default=0))
