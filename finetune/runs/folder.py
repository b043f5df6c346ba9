"""Which run is this, which others share its rows or its cost, and what of it survives a crash?"""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.config.harness_tasks import is_task_path, task_files
from finetune.config.schema import Config, Quantization, Source
from finetune.config.settings import OUTSIDE_IDENTITY, OUTSIDE_TRAINER_IDENTITY, flatten_all, to_plain
from finetune.data.embedded import sha256_of_weights
from finetune.data.splits import data_digest
from finetune.errors import UserError
from finetune.machine.processes import agree, is_main_process, process_count, require_shared
from finetune.runs.files import remove_folder, write_text
from finetune.runs.lock import LOCK, BusyError, lock_folder
from finetune.runs.result import RESULT, SELECTION, RunResult, read_result
from finetune.secrets import without_secrets

CONFIG = "config.yaml"
IDENTITY = "# identity: "  # the first line of a run's config.yaml, before its identity
FILES = "# files: "  # the second, before what besides the settings makes the identity, as JSON
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
    return _hash(_settings_of_identity(config) | _files_of_identity(config))[:8]


def _settings_of_identity(config: Config) -> dict[str, Any]:
    settings = {key: value for key, value in to_plain(config).items() if key not in OUTSIDE_IDENTITY}
    return settings | {"trainer": _trainer_without(settings, OUTSIDE_TRAINER_IDENTITY)}


def _files_of_identity(config: Config) -> dict[str, Any]:
    """What besides the settings changes the result: contents of local files, and how many processes there are."""
    facts: dict[str, Any] = {"digest": data_digest(config.data)}
    if process_count() > 1:  # they multiply the rows of a step
        facts["processes"] = process_count()
    if files := _named_files(config):
        # The checks of the command line say which of them are no files.
        facts["files"] = [sha256_of_weights(file) if file.is_file() else "" for file in files]
    return facts


def _named_files(config: Config) -> list[Path]:
    """The local files that the settings name, but those of the data."""
    files = sorted(Path(config.model.path).expanduser().glob("*")) if config.model.source is Source.local else []
    if template := config.trainer.get("chat_template_path"):
        files.append(Path(template))
    return files + [file for task in config.eval.harness_tasks if is_task_path(task) for file in task_files(task)]


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
def hold_run(config: Config, run: Path) -> Iterator[None]:
    """Keep the run's folder for this process and those beside it, and write its configuration.

    Raises UserError if another is at the run, or has completed it, or where the run's processes do not all see it.
    """
    is_new, is_first = not run.exists(), not (run / CONFIG).exists()
    with ExitStack() as held:
        agree(lambda: _begin(config, run, held))
        settings = (run / CONFIG).read_text(encoding="utf-8") if is_main_process() else ""
        try:
            require_shared(run / CONFIG, settings)
            yield
        except UserError:
            if is_first and is_main_process() and not list_checkpoints(run):  # of a run that was refused at once
                (run / CONFIG).unlink(missing_ok=True)  # which would refuse the one that heeds what was told
                if is_new:
                    remove_folder(run)
            raise


def _begin(config: Config, run: Path, held: ExitStack) -> None:
    held.enter_context(lock_folder(run))
    if complete_result(config, run):
        raise BusyError(f"{run}: another process has completed this run. The same command shows its result.")
    settings = yaml.safe_dump(without_secrets(to_plain(config)), sort_keys=False, allow_unicode=True)
    files = json.dumps(_files_of_identity(config), sort_keys=True)
    write_text(run / CONFIG, f"{IDENTITY}{run_identity(config)}\n{FILES}{files}\n{settings}")


def move_aside(config: Config, run: Path) -> Path | None:
    """With overwrite=true, give what an earlier run has left in the folder another name; None where there is nothing.

    A run that such a command has begun is not moved while it is unfinished, so that a scheduler may repeat the command.
    """
    if not config.overwrite or not (run / CONFIG).exists():
        return None
    text = (run / CONFIG).read_text(encoding="utf-8")
    begun_so = text.startswith(f"{IDENTITY}{run_identity(config)}\n") and yaml.safe_load(text).get("overwrite")
    if begun_so and not isinstance(read_result(run / RESULT), RunResult):
        return None
    with lock_folder(run):
        aside = next(path for i in range(1, 10_000) if not (path := run.with_name(f"{run.name}-before-{i}")).exists())
        run.rename(aside)
        (aside / LOCK).unlink()  # this process's own
    return aside


def complete_result(config: Config, run: Path) -> RunResult | None:
    """The result of the run in its folder if it is complete, else None.

    Raises UserError where the folder, which `name` may choose, holds a run of other settings or data.
    """
    file = run / CONFIG
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.startswith(IDENTITY) and not text.startswith(f"{IDENTITY}{run_identity(config)}\n"):
        changes = ", ".join([*_changed_settings(config, text), *_changed_files(config, text)])
        raise UserError(
            f"{run} holds another run; different: {changes or 'the format of its identity'}. Choose another name=NAME, "
            "or overwrite=true, which moves that run aside."
        )
    result = read_result(run / (SELECTION if config.sweep.on_validation else RESULT))
    return result if isinstance(result, RunResult) else None


def _changed_settings(config: Config, text: str) -> Iterator[str]:
    before, now = flatten_all(yaml.safe_load(text)), flatten_all(without_secrets(to_plain(config)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key.partition(".")[0] not in OUTSIDE_IDENTITY:
            yield f"{key}={now.get(key)} (there: {before.get(key)})"


def _changed_files(config: Config, text: str) -> Iterator[str]:
    line = next((line for line in text.splitlines()[:2] if line.startswith(FILES)), f"{FILES}{{}}")
    before, now = json.loads(line.removeprefix(FILES)), _files_of_identity(config)
    if before.get("digest") != now["digest"]:
        yield f"the contents of {config.data.path} or of its held-out files"
    if (there := before.get("processes", 1)) != process_count():
        yield f"{process_count()} processes (there: {there})"
    names, sums = [str(file) for file in _named_files(config)], now.get("files", [])
    if len(before.get("files", [])) != len(sums):
        yield "the number of files of the model"
    else:
        yield from (
            f"the contents of {name}"
            for name, new, old in zip(names, sums, before.get("files", []), strict=True)
            if new != old
        )
