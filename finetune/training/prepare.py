"""What does a run consist of, before its model is loaded? Whatever is wrong with it stops the run here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.config.schema import Config
from finetune.data import overlap
from finetune.data.splits import Splits
from finetune.evaluation import generate
from finetune.machine.device import Device
from finetune.model import base as model
from finetune.runs import cache_keys as alike
from finetune.training import chat_template as chat
from finetune.training import fit_checks as feasible
from finetune.training import row_checks as audit
from finetune.training import sft_config as sft_settings
from finetune.training import tokenize as tokens
from finetune.training.tokenize import Rows


@dataclass(frozen=True)
class Prepared:
    """The examples, their tokens, TRL's settings, and the base model's shapes without its weights."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    outline: Any
    settings: SFTConfig
    rows: Rows
    # What is legal but may surprise.
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Texts:
    """The part of a preparation that runs with the same rows share."""

    splits: Splits
    tokenizer: PreTrainedTokenizerBase
    outline: Any
    rows: Rows
    notes: list[str]


# Those of runs with the same rows, by alike.rows_key: the trials of a sweep are forked with theirs.
ready: dict[str, Texts] = {}


def prepare(config: Config, splits: Splits, machine: Device, folder: Path) -> Prepared:
    """Audit, tokenise and check the examples of the run in `folder`.

    Raises UserError for what is wrong with them.
    """
    feasible.check_machine(config, machine)
    texts = (ready and ready.get(alike.rows_key(config))) or read_texts(config, splits, machine, folder)
    parameters = texts.outline.num_parameters()
    settings = sft_settings.build(config.trainer, machine, folder, config.seed, parameters)
    feasible.check(config, machine, texts.outline, texts.rows)
    notes = [*feasible.notes(config), *texts.notes]
    return Prepared(texts.splits, texts.tokenizer, texts.outline, settings, texts.rows, notes)


def read_texts(config: Config, splits: Splits, machine: Device, folder: Path) -> Texts:
    """What runs with the same rows share. Raises UserError for what is wrong with the examples."""
    splits = overlap.audit(splits, config.data.overlap)
    tokenizer = model.load_tokenizer(config.model)
    outline = model.load_outline(config.model)
    settings = sft_settings.build(config.trainer, machine, folder, config.seed, outline.num_parameters())
    tokens.apply_settings(settings, tokenizer)
    chat.set_variables(tokenizer, config.model.chat_template_kwargs)
    audit.require_template(tokenizer, splits, config.model.plain_prompt)
    splits = audit.guard(splits, tokenizer, config.data.control_tokens)
    rows = tokens.tokenize(splits, tokenizer, settings)
    reader = audit.Reader(tokenizer, generate.end_tokens(outline, tokenizer), settings)
    audit.check(config.data, splits, rows, reader)
    return Texts(splits, tokenizer, outline, rows, list(audit.notes(splits, rows, reader)))
