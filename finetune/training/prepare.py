"""What does a run consist of, before its model is loaded? Whatever is wrong with it stops the run here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import Config
from finetune.data.overlap import check_overlap
from finetune.data.splits import Splits
from finetune.machine.device import Device
from finetune.model.base import load_meta_model
from finetune.model.tokenizer import apply_tokenizer_settings, end_tokens, load_tokenizer
from finetune.runs.cache_keys import rows_key
from finetune.training.chat_template import set_template_variables
from finetune.training.fit_checks import bias_notes, check_fit, check_machine
from finetune.training.row_checks import RowReader, check_rows, guard_control_tokens, require_template, template_notes
from finetune.training.sft_config import build_sft_config
from finetune.training.tokenize import TokenizedRows, tokenize_splits


@dataclass(frozen=True)
class PreparedRun:
    """The examples, their tokens, TRL's settings, and the base model's shapes without its weights."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    outline: Any
    settings: SFTConfig
    rows: TokenizedRows
    # What is legal but may surprise.
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PreparedRows:
    """The part of a preparation that runs with the same rows share."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    outline: Any
    rows: TokenizedRows
    notes: list[str]


# Those of runs with the same rows, by alike.rows_key: the trials of a sweep are forked with theirs.
ready: dict[str, PreparedRows] = {}


def prepare_run(config: Config, splits: Splits, machine: Device, folder: Path) -> PreparedRun:
    """Audit, tokenise and check the examples of the run in `folder`.

    Raises UserError for what is wrong with them.
    """
    check_machine(config, machine)
    texts = (ready and ready.get(rows_key(config))) or prepare_rows(config, splits, machine, folder)
    parameters = texts.outline.num_parameters()
    settings = build_sft_config(config.trainer, machine, folder, config.seed, parameters)
    check_fit(config, machine, texts.outline, texts.rows)
    notes = [*bias_notes(config), *texts.notes]
    return PreparedRun(texts.splits, texts.tokenizer, texts.outline, settings, texts.rows, notes)


def prepare_rows(config: Config, splits: Splits, machine: Device, folder: Path) -> PreparedRows:
    """What runs with the same rows share. Raises UserError for what is wrong with the examples."""
    splits = check_overlap(splits, config.data.overlap)
    tokenizer = load_tokenizer(config.model)
    outline = load_meta_model(config.model)
    settings = build_sft_config(config.trainer, machine, folder, config.seed, outline.num_parameters())
    apply_tokenizer_settings(settings, tokenizer)
    set_template_variables(tokenizer, config.model.chat_template_kwargs)
    require_template(tokenizer, splits, config.model.plain_prompt)
    splits = guard_control_tokens(splits, tokenizer, config.data.control_tokens)
    rows = tokenize_splits(splits, tokenizer, settings)
    reader = RowReader(tokenizer, end_tokens(outline, tokenizer), settings)
    check_rows(config.data, splits, rows, reader)
    return PreparedRows(splits, tokenizer, outline, rows, list(template_notes(splits, rows, reader)))
