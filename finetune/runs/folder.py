"""Which run is this, and what of it survives a crash?"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from finetune.config.choices import Source
from finetune.config.harness_tasks import files, is_path
from finetune.config.schema import Config, UserError
from finetune.data import splits as data
from finetune.errors import without_secrets


class BusyError(UserError):
    """Another process is at the run, or was while this one began."""


# What a trial of a search leaves instead of result.json: its score on validation prompts.
SELECTION = "selection.json"
# The first line of a run's config.yaml, before its identity.
IDENTITY = "# identity: "

# Settings that change where a run's numbers go, but not the numbers.
OUTSIDE_IDENTITY = ("tracking", "name", "output_dir", "stage", "plan", "sweep", "force")
OUTSIDE_TRAINER_IDENTITY = (
    "report_to",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "save_total_limit",
    "dataloader_num_workers",
    "dataset_num_proc",
)


WHOLE_BYTES, PIECE_BYTES = 2**20, 2**16


def folder(config: Config) -> Path:
    """The folder of the run: the same for every process and every retry, another for every other setting."""
    return Path(config.output_dir) / (config.name or f"{config.model.name}-{data_name(config)}-{identity(config)}")


def data_name(config: Config) -> str:
    """The data set's short name; a local file lends its own."""
    return Path(config.data.path).stem if config.data.source is Source.local else config.data.name


def identity(config: Config) -> str:
    """Eight hexadecimal digits of a hash over everything that changes the result, local files included."""
    settings = {key: value for key, value in plain(config).items() if key not in OUTSIDE_IDENTITY}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in OUTSIDE_TRAINER_IDENTITY}
    settings["digest"] = data.digest(config.data)
    if hashes := [_fingerprint(file) for file in _files(config)]:
        settings["files"] = hashes
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _files(config: Config) -> Iterator[Path]:
    """What a run reads by its path, besides the rows."""
    if config.model.source is Source.local:
        yield from sorted(Path(config.model.path).expanduser().glob("*"))
    if template := config.trainer.get("chat_template_path"):
        yield Path(template)
    yield from (file for task in config.eval.harness_tasks if is_path(task) for file in files(task))


def _fingerprint(file: Path) -> str:
    """A hash of the file; of a large one, which are weights, of its size and of three pieces."""
    if not file.is_file():  # which is told elsewhere
        return ""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE_BYTES:
            return hashlib.sha256(opened.read()).hexdigest()
        parts = [str(size).encode()]
        for start in (0, size // 2, size - PIECE_BYTES):
            opened.seek(start)
            parts.append(opened.read(PIECE_BYTES))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def labels(config: Config) -> dict[str, Any]:
    """What the run is called beside others: `name`, `group`, `tags`, and its whole `config`."""
    quantization, adapter = config.quantization, config.adapter
    if quantization.load_in_4bit:
        stored = quantization.bnb_4bit_quant_type.value
    else:
        stored = "int8" if quantization.load_in_8bit else "unquantised"
    trained = "dora" if adapter.use_dora else "rslora" if adapter.use_rslora else "lora"
    tags = [config.model.name, data_name(config), stored, trained if adapter.enabled else "full"]
    return {
        "name": folder(config).name,
        "group": config.sweep.name or f"{config.model.name}-{data_name(config)}",
        "tags": [*tags, config.sweep.name] if config.sweep.name else tags,
        "config": plain(config),
    }


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end (the trainer's state is the last file of one)."""
    complete = [path.parent for path in run.glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _require_same(config: Config, run: Path) -> None:
    file = run / "config.yaml"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    first = text.partition("\n")[0]
    if first == f"{IDENTITY}{identity(config)}" or not first.startswith(IDENTITY):
        return
    before, now = _flat(yaml.safe_load(text)), _flat(without_secrets(plain(config)))
    other = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    other = [key for key in other if key.partition(".")[0] not in OUTSIDE_IDENTITY]
    apart = ", ".join(f"{key}={now.get(key)} (there: {before.get(key)})" for key in other) or "the data files"
    raise UserError(f"name={config.name}: {run} holds another run; different: {apart}. Choose another name.")


@contextmanager
def hold(config: Config, run: Path, is_main_process: bool) -> Iterator[None]:
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
        if result(config, run):
            raise BusyError(f"{run}: another process has completed this run. The same command shows its result.")
        settings = yaml.safe_dump(without_secrets(plain(config)), sort_keys=False, allow_unicode=True)
        write(run / "config.yaml", f"{IDENTITY}{identity(config)}\n{settings}")
        yield
    finally:
        lock.release()


def is_held(run: Path) -> bool:
    """Whether another process is at the run."""
    if not run.exists():
        return False
    try:
        with FileLock(run / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def write_failure(config: Config, run: Path, status: str, reason: str, seconds: float) -> None:
    """Leave a result.json that says how the run ended, unless its folder is in another process's or run's hands."""
    file = run / "result.json"
    try:
        if result(config, run) or (file.exists() and json.loads(file.read_text())["status"] == "complete"):
            return
        with hold(config, run, is_main_process=True):
            content = {"name": run.name, "status": status, "reason": reason, "seconds_in_all": round(seconds, 1)}
            content |= {"config": without_secrets(plain(config))}
            write(run / "result.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except UserError:
        return


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def result(config: Config, run: Path) -> dict[str, Any] | None:
    """The result of the run in its folder if it is complete, else None.

    Raises UserError where the folder, which `name` may choose, holds a run of other settings or data.
    """
    _require_same(config, run)
    file = run / (SELECTION if config.sweep.on_validation else "result.json")
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content if content.get("status") == "complete" else None


def write(file: Path, text: str) -> None:
    """Write a whole file or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
