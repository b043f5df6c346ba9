"""What does a run consist of, before its model is loaded? Whatever is wrong with it stops the run here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import Config
from finetune.data.overlap import check_overlap
from finetune.data.splits import Splits
from finetune.machine.device import Device
from finetune.model.base import load_meta_model
from finetune.model.tokenizer import apply_tokenizer_settings, end_tokens, load_tokenizer
from finetune.runs.folder import rows_key
from finetune.training.chat_template import set_template_variables
from finetune.training.fit_checks import bias_notes, check_fit, check_machine
from finetune.training.row_checks import RowReader, check_rows, guard_control_tokens, require_template, template_notes
from finetune.training.sft_config import build_sft_config
from finetune.training.tokenize import TokenizedRows, tokenize_splits


@dataclass(frozen=True)
class PreparedRows:
    """What runs with the same rows share: the examples, their tokens, and the base model's shapes without weights."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    meta_model: PreTrainedModel
    rows: TokenizedRows
    # What is legal but may surprise.
    notes: list[str]


@dataclass(frozen=True)
class PreparedRun(PreparedRows):
    """All of a run but its model: its rows, and TRL's settings."""

    settings: SFTConfig


def prepare_run(
    config: Config, splits: Splits, machine: Device, folder: Path, loaded: Mapping[str, PreparedRows] | None = None
) -> PreparedRun:
    """Check and tokenise the examples of the run in `folder`; rows in `loaded`, by `rows_key`, are taken as they are.

    Raises UserError for what is wrong with them.
    """
    check_machine(config, machine)
    rows = (loaded and loaded.get(rows_key(config))) or prepare_rows(config, splits, machine, folder)
    settings = build_sft_config(config.trainer, machine, folder, config.seed, rows.meta_model.num_parameters())
    check_fit(config, machine, rows.meta_model, rows.rows)
    return PreparedRun(**vars(rows) | {"notes": [*bias_notes(config), *rows.notes]}, settings=settings)


def prepare_rows(config: Config, splits: Splits, machine: Device, folder: Path) -> PreparedRows:
    """What runs with the same rows share. Raises UserError for what is wrong with the examples."""
    splits = check_overlap(splits, config.data.overlap)
    tokenizer = load_tokenizer(config.model)
    meta_model = load_meta_model(config.model)
    settings = build_sft_config(config.trainer, machine, folder, config.seed, meta_model.num_parameters())
    apply_tokenizer_settings(settings, tokenizer)
    set_template_variables(tokenizer, config.model.chat_template_kwargs)
    require_template(tokenizer, splits, config.model.plain_prompt)
    splits = guard_control_tokens(splits, tokenizer, config.data.control_tokens)
    rows = tokenize_splits(splits, tokenizer, settings)
    reader = RowReader(tokenizer, end_tokens(meta_model, tokenizer), settings)
    check_rows(config.data, splits, rows, reader)
    return PreparedRows(splits, tokenizer, meta_model, rows, list(template_notes(splits, rows, reader)))
