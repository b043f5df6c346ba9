"""Which run is this, and what of it survives a crash?"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from finetune.config.harness_tasks import is_task_path, task_files
from finetune.config.schema import Config, Source
from finetune.config.settings import OUTSIDE_IDENTITY, OUTSIDE_TRAINER_IDENTITY, flatten_all, to_plain
from finetune.data.embedded import sha256_of_file
from finetune.data.splits import data_digest
from finetune.errors import UserError, without_secrets
from finetune.runs.files import write_text
from finetune.runs.result import RESULT, SELECTION, RunResult, read_result


class BusyError(UserError):
    """Another process is at the run, or was while this one began."""


# The first line of a run's config.yaml, before its identity.
IDENTITY = "# identity: "
WHOLE_BYTES, PIECE_BYTES = 2**20, 2**16


def run_folder(config: Config) -> Path:
    """The folder of the run: the same for every process and every retry, another for every other setting."""
    return Path(config.output_dir) / (config.name or f"{config.model.name}-{data_name(config)}-{run_identity(config)}")


def data_name(config: Config) -> str:
    """The data set's short name; a local file lends its own."""
    return Path(config.data.path).stem if config.data.source is Source.local else config.data.name


def run_identity(config: Config) -> str:
    """Eight hexadecimal digits of a hash over everything that changes the result, local files included."""
    settings = {key: value for key, value in to_plain(config).items() if key not in OUTSIDE_IDENTITY}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in OUTSIDE_TRAINER_IDENTITY}
    settings["digest"] = data_digest(config.data)
    if hashes := [_fingerprint(file) for file in _files(config)]:
        settings["files"] = hashes
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _files(config: Config) -> Iterator[Path]:
    """What a run reads by its path, besides the rows."""
    if config.model.source is Source.local:
        yield from sorted(Path(config.model.path).expanduser().glob("*"))
    if template := config.trainer.get("chat_template_path"):
        yield Path(template)
    yield from (file for task in config.eval.harness_tasks if is_task_path(task) for file in task_files(task))


def _fingerprint(file: Path) -> str:
    """A hash of the file; of a large one, which are weights, of its size and of three pieces."""
    if not file.is_file():  # the checks of the command line say so
        return ""
    size = file.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256_of_file(file)
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for start in (0, size // 2, size - PIECE_BYTES):
            opened.seek(start)
            digest.update(opened.read(PIECE_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class RunLabels:
    """What a run is called beside others, and its whole configuration."""

    name: str
    group: str
    tags: list[str]
    config: dict[str, Any]
    job_type: str = "train"


def run_labels(config: Config) -> RunLabels:
    """The labels of a run; the tags say what is trained on which data."""
    quantization, adapter, sweep = config.quantization, config.adapter, config.sweep.name
    stored, trained = "unquantised", "lora"
    if quantization.load_in_4bit:
        stored = quantization.bnb_4bit_quant_type.value
    elif quantization.load_in_8bit:
        stored = "int8"
    if not adapter.enabled:
        trained = "full"
    elif adapter.use_dora or adapter.use_rslora:
        trained = "dora" if adapter.use_dora else "rslora"
    model, data = config.model.name, data_name(config)
    tags = [model, data, stored, trained, *([sweep] if sweep else [])]
    return RunLabels(run_folder(config).name, sweep or f"{model}-{data}", tags, to_plain(config))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end (the trainer's state is the last file of one)."""
    complete = [path.parent for path in run.glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _require_same(config: Config, run: Path) -> None:
    file = run / "config.yaml"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    first = text.partition("\n")[0]
    if first == f"{IDENTITY}{run_identity(config)}" or not first.startswith(IDENTITY):
        return
    before, now = flatten_all(yaml.safe_load(text)), flatten_all(without_secrets(to_plain(config)))
    changes = [
        f"{key}={now.get(key)} (there: {before.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.partition(".")[0] not in OUTSIDE_IDENTITY
    ]
    different = ", ".join(changes) or "the data files"
    raise UserError(f"name={config.name}: {run} holds another run; different: {different}. Choose another name.")


@contextmanager
def hold_run(config: Config, run: Path, is_main_process: bool) -> Iterator[None]:
    """Keep the run's folder for this process alone, and write its configuration there.

    Raises UserError where another process is at it.
    """
    if not is_main_process:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"{run}: another process is at this run. Wait for it, or choose another name=NAME.") from error
    try:
        if complete_result(config, run):
            raise BusyError(f"{run}: another process has completed this run. The same command shows its result.")
        settings = yaml.safe_dump(without_secrets(to_plain(config)), sort_keys=False, allow_unicode=True)
        write_text(run / "config.yaml", f"{IDENTITY}{run_identity(config)}\n{settings}")
        yield
    finally:
        lock.release()


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
    _require_same(config, run)
    result = read_result(run / (SELECTION if config.sweep.on_validation else RESULT))
    return result if isinstance(result, RunResult) else None
