"""Which run is this, which others share its rows or its cost, and what of it survives a crash?"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from finetune.config.harness_tasks import is_task_path, task_files
from finetune.config.schema import Config, Quantization, Source
from finetune.config.settings import OUTSIDE_IDENTITY, OUTSIDE_TRAINER_IDENTITY, flatten_all, to_plain
from finetune.data.embedded import sha256_of_weights
from finetune.data.splits import data_digest
from finetune.errors import UserError
from finetune.runs.files import write_text
from finetune.runs.result import RESULT, SELECTION, RunResult, read_result
from finetune.secrets import without_secrets


class BusyError(UserError):
    """Another process is at the run, or was while this one began."""


IDENTITY = "# identity: "  # the first line of a run's config.yaml, before its identity
# Settings of the trainer that change neither its rows nor the memory it needs, and further ones that keep its rows.
RATES = {
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", *OUTSIDE_TRAINER_IDENTITY),
}
AMOUNTS = {
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "optim"),
}


def run_folder(config: Config) -> Path:
    """The folder of the run: the same for every process and every retry, another for every other setting."""
    return Path(config.output_dir) / (config.name or f"{config.model.name}-{data_name(config)}-{run_identity(config)}")


def data_name(config: Config) -> str:
    """The data set's short name; a local file lends its own."""
    return Path(config.data.path).stem if config.data.source is Source.local else config.data.name


def run_identity(config: Config) -> str:
    """Eight hexadecimal digits of a hash over everything that changes the result, local files included."""
    settings = {key: value for key, value in to_plain(config).items() if key not in OUTSIDE_IDENTITY}
    settings["trainer"] = _trainer_without(settings, OUTSIDE_TRAINER_IDENTITY)
    settings["digest"] = data_digest(config.data)
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:  # they multiply the rows of a step
        settings["processes"] = processes
    files = sorted(Path(config.model.path).expanduser().glob("*")) if config.model.source is Source.local else []
    if template := config.trainer.get("chat_template_path"):
        files.append(Path(template))
    files += [file for task in config.eval.harness_tasks if is_task_path(task) for file in task_files(task)]
    if files:
        # The checks of the command line say which of them are no files.
        settings["files"] = [sha256_of_weights(file) if file.is_file() else "" for file in files]
    return _hash(settings)[:8]


def rows_key(config: Config) -> str:
    """The same for runs with the same tokens, which are computed once."""
    settings = to_plain(config)
    trainer = _trainer_without(settings, RATES | AMOUNTS)
    return _hash([settings["data"], settings["model"], trainer, data_digest(config.data)])


def cost_key(config: Config) -> str:
    """The same for runs that need the same memory and take the same time."""
    settings = to_plain(config)
    sections = [settings[name] for name in ("data", "model", "quantization", "adapter", "eval", "plan")]
    return _hash([*sections, _trainer_without(settings, RATES), data_digest(config.data)])


def _trainer_without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings["trainer"].items() if name not in names}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RunLabels:
    """What a run is called beside others, and its whole configuration."""

    name: str
    group: str
    tags: list[str]
    config: dict[str, Any]
    job_type: str = "train"


def weight_storage(quantization: Quantization) -> str:
    """How the base's weights are stored: nf4, fp4, int8 or unquantised."""
    stored = {quantization.bnb_4bit_quant_type.value: quantization.load_in_4bit, "int8": quantization.load_in_8bit}
    return next(filter(stored.get, stored), "unquantised")


def run_labels(config: Config) -> RunLabels:
    """The labels of a run; the tags say what is trained on which data."""
    quantization, adapter, sweep = config.quantization, config.adapter, config.sweep.name
    trained = {"full": not adapter.enabled, "dora": adapter.use_dora, "rslora": adapter.use_rslora}
    model, data = config.model.name, data_name(config)
    tags = [model, data, weight_storage(quantization), next(filter(trained.get, trained), "lora")]
    tags += [sweep] if sweep else []
    return RunLabels(run_folder(config).name, sweep or f"{model}-{data}", tags, to_plain(config))


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; whether they are whole, `training/checkpoints.py` tells."""
    folders = [path for path in run.glob("checkpoints/checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda path: -int(path.name.rpartition("-")[2]))


@contextmanager
def hold_run(config: Config, run: Path, is_main_process: bool) -> Iterator[None]:
    """Keep the run's folder for this process, and write its configuration; raises UserError if another is at it."""
    if not is_main_process:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise BusyError(f"{run}: another process is at this run. Wait for it, or choose another name=NAME.") from error
    with lock:
        if complete_result(config, run):
            raise BusyError(f"{run}: another process has completed this run. The same command shows its result.")
        settings = yaml.safe_dump(without_secrets(to_plain(config)), sort_keys=False, allow_unicode=True)
        write_text(run / "config.yaml", f"{IDENTITY}{run_identity(config)}\n{settings}")
        yield


def is_run_held(run: Path) -> bool:
    """Whether another process is at the run."""
    if not run.exists():
        return False
    try:
        with FileLock(run / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def complete_result(config: Config, run: Path) -> RunResult | None:
    """The result of the run in its folder if it is complete, else None.

    Raises UserError where the folder, which `name` may choose, holds a run of other settings or data.
    """
    file = run / "config.yaml"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    first = text.partition("\n")[0]
    if first.startswith(IDENTITY) and first != f"{IDENTITY}{run_identity(config)}":
        before, now = flatten_all(yaml.safe_load(text)), flatten_all(without_secrets(to_plain(config)))
        changes = [
            f"{key}={now.get(key)} (there: {before.get(key)})"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key.partition(".")[0] not in OUTSIDE_IDENTITY
        ]
        different = ", ".join(changes) or "the files of the data or the model, or the number of processes"
        raise UserError(f"name={config.name}: {run} holds another run; different: {different}. Choose another name.")
    result = read_result(run / (SELECTION if config.sweep.on_validation else RESULT))
    return result if isinstance(result, RunResult) else None
