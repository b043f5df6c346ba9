"""What exactly are the tokens of each row, and which of them carry loss?

TRL's own preparation, called before the model is loaded: what is checked and shown is what is trained on.
"""

import copy
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import has_generation_markers

from finetune.data.splits import Example, Splits
from finetune.errors import UserError
from finetune.runs.result import SplitSize
from finetune.training.chat_template import training_row, training_template

# The label of a token that carries no loss.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedRows:
    """The tokens of the splits `train`, `validation` and `test`, as columns `input_ids` and `labels`.

    whole: one row for each example, in their order, not cut. train and validation: the rows that the trainer reads,
    cut at `max_length` or packed.
    """

    whole: dict[str, Dataset]
    train: Dataset
    validation: Dataset
    sizes: dict[str, SplitSize]


def tokenize_splits(splits: Splits, tokenizer: PreTrainedTokenizerBase, settings: SFTConfig) -> TokenizedRows:
    """The tokens of all examples, prepared as `settings` say."""
    examples = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    whole = {name: tokenize_examples(split, tokenizer, settings, name) for name, split in examples.items()}
    eval_packing = settings.packing if settings.eval_packing is None else settings.eval_packing
    preparation = _Preparation(tokenizer, settings, whole=False)
    return TokenizedRows(
        whole,
        preparation.run(whole["train"], settings.packing, "train"),
        preparation.run(whole["validation"], eval_packing, "validation"),
        {name: _size(rows, truncation_length(settings)) for name, rows in whole.items()},
    )


class _Preparation(SFTTrainer):
    """As much of SFTTrainer as its preparation of rows needs, which is no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: SFTConfig, whole: bool) -> None:
        self._tokenizer = tokenizer  # private: TRL, its preparation reads it
        self._settings = copy.copy(settings)
        if whole:
            self._settings.max_length = None
        self.completion_only_loss = settings.completion_only_loss is not False
        needs_marks = settings.assistant_only_loss and not has_generation_markers(tokenizer.chat_template)
        try:
            self.chat_template = training_template(tokenizer) if needs_marks else None
        except ValueError as error:
            raise UserError(
                "trainer.assistant_only_loss=true: this model's chat template does not mark the assistant's words with "
                "{% generation %}, and TRL knows no such form of it. Leave the setting out (only the last answer then "
                "carries loss), or give a template that does with trainer.chat_template_path=FILE.jinja."
            ) from error

    def run(self, rows: Dataset, packing: bool, name: str) -> Dataset:
        arguments = rows, self._tokenizer, self._settings, packing, None, name
        prepared: Dataset = self._prepare_dataset(*arguments)  # private: TRL, which offers it only with a model
        return prepared


def tokenize_examples(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, settings: SFTConfig, name: str
) -> Dataset:
    """One row of `input_ids` and `labels` for each example, not cut; raises UserError for a row that is refused."""
    rows = [training_row(example, tokenizer, settings.assistant_only_loss) for example in examples]
    preparation = _Preparation(tokenizer, settings, whole=True)
    try:
        tokenized = preparation.run(Dataset.from_list(rows), False, name)
    except (TemplateError, RuntimeError):
        _name_refused(examples, rows, preparation)
        raise
    return tokenized.select_columns(["input_ids", "labels"])


def _name_refused(examples: list[Example], rows: list[dict[str, Any]], preparation: _Preparation) -> None:
    """Raise UserError for a row that the chat template, or TRL, refuses; it is searched for by halving."""
    while True:
        half = max(1, len(rows) // 2)
        try:
            preparation.run(Dataset.from_list(rows[:half]), False, "refused")
        except (TemplateError, RuntimeError) as error:
            if half == 1:
                raise UserError(f"{examples[0].place}: {_refusal(error)}") from error
            examples, rows = examples[:half], rows[:half]
        else:
            if half == len(rows):
                return
            examples, rows = examples[half:], rows[half:]


def _refusal(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return (
            f"the chat template refuses this row: {error}. Change the row (and data.system), or give another template "
            "with trainer.chat_template_path=FILE.jinja."
        )
    return (
        "no token of this row carries loss (trainer.assistant_only_loss): the chat template marks no answer of the "
        "assistant's with {% generation %}. Leave out trainer.assistant_only_loss, or repair the template."
    )


def _size(tokenized: Dataset, max_length: int | None) -> SplitSize:
    lengths = [len(row) for row in tokenized["input_ids"]]
    answers = [sum(label != IGNORE_INDEX for label in labels[1:]) for labels in tokenized["labels"]]
    truncated = sum(length > max_length for length in lengths) if max_length else 0
    dropped = len(lengths) - len(rows_with_loss(tokenized, max_length))
    return SplitSize(len(lengths), sum(lengths), sum(answers), truncated, dropped, max(answers, default=0))


def truncation_length(settings: SFTConfig) -> int | None:
    """The length beyond which tokens of a row are lost, if there is one: `bfd_split` and `wrapped` packing keep all."""
    keeps_all = settings.packing and settings.packing_strategy != "bfd"
    return None if keeps_all else settings.max_length


def rows_with_loss(tokenized: Dataset, max_length: int | None) -> list[int]:
    """The indices of the rows that have a loss token left when they are cut at `max_length`."""
    return [
        number
        for number, labels in enumerate(tokenized["labels"])
        if any(label != IGNORE_INDEX for label in labels[:max_length])
    ]
