"""What does the model read, with the same tokens of a prompt in training and in generation, and which carry loss?

Rows are prepared by TRL itself, before a model is loaded: what is checked and shown is what is trained on.
"""

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from finetune.data.splits import Example, Message, Splits
from finetune.errors import UserError
from finetune.runs.result import SplitSize

IGNORE_INDEX = -100  # the label of a token that carries no loss
# What may part the messages of a plain prompt, and under which name it is kept in the tokenizer's settings.
# None ends in more than one line break: many tokenizers would read these otherwise in front of an answer.
SEPARATORS, SEPARATOR_KEY = ("\n", "\n###\n"), "turn_separator"
SET_VARIABLES = re.compile(r"(\{%- set \w+ = \w+ \| default\(.*?\) %\})*")  # as `set_template_variables` writes them


@dataclass(frozen=True)
class TokenizedRows:
    """The tokens of the splits `train`, `validation` and `test`, as columns `input_ids` and `labels`."""

    whole: dict[str, Dataset]  # one row for each example, in their order, not cut
    train: Dataset  # as the trainer reads it: cut at `max_length`, or packed
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
    half = max(1, len(rows) // 2)
    try:
        preparation.run(Dataset.from_list(rows[:half]), False, "refused")
    except (TemplateError, RuntimeError) as error:
        if half == 1:
            refusal = (
                "no token of this row carries loss (trainer.assistant_only_loss): the chat template marks no answer of "
                "the assistant's with {% generation %}. Leave out trainer.assistant_only_loss, or repair the template."
            )
            if isinstance(error, TemplateError):
                refusal = (
                    f"the chat template refuses this row: {error}. Change the row (and data.system), or give another "
                    "template with trainer.chat_template_path=FILE.jinja."
                )
            raise UserError(f"{examples[0].place}: {refusal}") from error
        _name_refused(examples[:half], rows[:half], preparation)
    if half < len(rows):
        _name_refused(examples[half:], rows[half:], preparation)


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
    labels = enumerate(tokenized["labels"])
    return [number for number, row in labels if any(label != IGNORE_INDEX for label in row[:max_length])]


def set_template_variables(tokenizer: PreTrainedTokenizerBase, values: dict[str, Any]) -> None:
    """Give the chat template's variables these values for good; raises UserError for one that it does not read."""
    for name, value in values.items():
        template = str(tokenizer.chat_template or "")
        if not re.search(rf"\b{name}\b", template):
            raise UserError(
                f"model.chat_template_kwargs.{name}={json.dumps(value)}: this model's chat template does not read "
                f"{name}. Leave it out, or name a variable that the template reads."
            )
        default = json.dumps(value, ensure_ascii=False)
        tokenizer.chat_template = f"{{%- set {name} = {name} | default({default}) %}}{template}"


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The other form of the chat template, which marks the assistant's words; raises ValueError if TRL knows none."""
    template = str(tokenizer.chat_template)
    values = SET_VARIABLES.match(template).group()  # type: ignore[union-attr]
    plain = copy.copy(tokenizer)
    plain.chat_template = template.removeprefix(values)  # TRL knows templates by their whole text
    marked = get_training_chat_template(plain)
    return marked and values + marked


def training_row(example: Example, tokenizer: PreTrainedTokenizerBase, assistant_only: bool) -> dict[str, Any]:
    """One row as TRL's SFTTrainer reads it: prompt and completion, a whole chat (`assistant_only`), or plain text."""
    if not example.prompt:
        return {"text": example.completion}
    answer = [{"role": "assistant", "content": example.completion}]
    if assistant_only:
        return {"messages": [*example.prompt, *answer]}
    if tokenizer.chat_template:
        return {"prompt": example.prompt, "completion": answer}
    return {"prompt": plain_prompt(example.prompt, tokenizer), "completion": example.completion}


def prompt_tokens(prompt: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the model is given before it answers."""
    if tokenizer.chat_template:
        rendered: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        return list(rendered["input_ids"])
    return list(tokenizer(plain_prompt(prompt, tokenizer))["input_ids"])


def plain_prompt(prompt: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt for a model without a chat template: the messages, each with `turn_separator` behind it."""
    return "".join(message["content"] + turn_separator(tokenizer) for message in prompt)


def turn_separator(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands behind each message of a plain prompt, and so ends an answer; empty where there is a template."""
    return "" if tokenizer.chat_template else str(tokenizer.init_kwargs.get(SEPARATOR_KEY, SEPARATORS[0]))


def set_turn_separator(tokenizer: PreTrainedTokenizerBase, splits: Splits) -> None:
    """Choose the first separator that no answer holds; it is saved with the tokenizer.

    Raises UserError where every separator is inside an answer.
    """
    answers = [e.completion for e in (*splits.train, *splits.validation, *splits.test) if e.prompt]
    for separator in SEPARATORS:
        if not any(separator in answer for answer in answers):
            tokenizer.init_kwargs[SEPARATOR_KEY] = separator
            return
    raise UserError(
        "model.plain_prompt=true: messages are parted by a line break or a line ###, and answers of this data hold "
        "both. Give the model a chat template with trainer.chat_template_path=FILE.jinja."
    )
