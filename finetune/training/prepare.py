"""What does a run consist of, before its model is loaded? Whatever is wrong with it stops the run here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import Config
from finetune.data.overlap import check_overlap
from finetune.data.splits import Splits
from finetune.machine.device import Device
from finetune.model.base import load_meta_model
from finetune.model.tokenizer import apply_tokenizer_settings, end_tokens, load_tokenizer
from finetune.runs.folder import rows_key
from finetune.training.fit_checks import bias_notes, check_fit, check_machine
from finetune.training.row_checks import RowReader, check_rows, guard_control_tokens, require_template, template_notes
from finetune.training.tokenize import TokenizedRows, set_template_variables, set_turn_separator, tokenize_splits

CHECKPOINTING_FROM = 1_000_000_000  # parameters from which activations are recomputed, unless the user says otherwise


@dataclass(frozen=True)
class PreparedRows:
    """What runs with the same rows share: the examples, their tokens, and the base model's shapes without weights."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    meta_model: PreTrainedModel
    rows: TokenizedRows
    notes: list[str]  # what is legal but may surprise


@dataclass(frozen=True)
class PreparedRun(PreparedRows):
    """All of a run but its model: its rows, and TRL's settings."""

    settings: SFTConfig


def prepare_run(
    config: Config, splits: Splits, machine: Device, folder: Path, loaded: Mapping[str, PreparedRows] | None = None
) -> PreparedRun:
    """A run's checked rows, taken from `loaded` by `rows_key` where they are there; raises UserError for faults."""
    check_machine(config, machine)
    rows = (loaded and loaded.get(rows_key(config))) or prepare_rows(config, splits, machine, folder)
    settings = build_sft_config(config.trainer, machine, folder, config.seed, rows.meta_model.num_parameters())
    check_fit(config, machine, rows.meta_model, rows.rows)
    return PreparedRun(**vars(rows) | {"notes": [*bias_notes(config), *rows.notes]}, settings=settings)


def prepare_rows(config: Config, splits: Splits, machine: Device, folder: Path) -> PreparedRows:
    """What runs with the same rows share. Raises UserError for what is wrong with the examples."""
    splits = check_overlap(splits, config.data.overlap)
    tokenizer, meta_model = load_tokenizer(config.model), load_meta_model(config.model)
    settings = build_sft_config(config.trainer, machine, folder, config.seed, meta_model.num_parameters())
    apply_tokenizer_settings(settings, tokenizer)
    set_template_variables(tokenizer, config.model.chat_template_kwargs)
    require_template(tokenizer, splits, config.model.plain_prompt)
    if not tokenizer.chat_template:
        set_turn_separator(tokenizer, splits)
    splits = guard_control_tokens(splits, tokenizer, config.data.control_tokens)
    rows = tokenize_splits(splits, tokenizer, settings)
    reader = RowReader(tokenizer, end_tokens(meta_model, tokenizer), settings)
    check_rows(config.data, splits, rows, reader)
    return PreparedRows(splits, tokenizer, meta_model, rows, list(template_notes(splits, rows, reader)))


def build_sft_config(chosen: dict[str, Any], machine: Device, folder: Path, seed: int, parameters: int) -> SFTConfig:
    """TRL's settings: `chosen` by the user over what follows from the machine and the base model's `parameters`."""
    ours: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "seed": seed,
        "use_cpu": machine.kind == "cpu",
        "bf16": machine.mixed_precision == "bf16" and not chosen.get("fp16"),
        "fp16": machine.mixed_precision == "fp16" and not chosen.get("bf16"),
        "dataloader_pin_memory": machine.kind == "cuda",
        "logging_nan_inf_filter": False,  # a NaN loss must be seen, not averaged away
        "disable_tqdm": True,
        "report_to": "none",
    }
    if not {"activation_checkpointing", "gradient_checkpointing"} & chosen.keys():  # TRL turns it on
        ours[checkpointing_name()] = parameters >= CHECKPOINTING_FROM
    return SFTConfig(**(ours | chosen))


def checkpointing_name() -> str:
    """What the installed transformers calls it: 5.23 gave it a new name, which wins over the old one."""
    renamed = hasattr(SFTConfig, "activation_checkpointing")
    return "activation_checkpointing" if renamed else "gradient_checkpointing"
