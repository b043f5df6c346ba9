"""From where does a run continue? From a checkpoint that lies on the disk as it was written, and from no other."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.config.schema import Checkpoint
from finetune.data.checksums import sha256_of_file
from finetune.errors import UserError
from finetune.machine.processes import agree
from finetune.runs.files import flush, remove_folder
from finetune.runs.folder import list_checkpoints
from finetune.training.counters import Counters

MANIFEST = "manifest.json"  # what was written into a checkpoint, and by what
UNFINISHED = ".unfinished"  # where one is written, beside those that are whole
ARGUMENTS = "training_args.bin"  # transformers', a pickle that nobody reads
ORIGINS = {"data": "other rows", "base": "another base model"}  # by the key in the manifest that tells them apart
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


class TimedCheckpoints(TrainerCallback):
    """Asks for a checkpoint `every_minutes`, and less often where checkpoints would take more than their share."""

    def __init__(self, settings: Checkpoint, counters: Counters) -> None:
        self.settings, self.counters, self.saved_at = settings, counters, time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.saved_at = time.monotonic()

    on_save = on_train_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.settings.every_minutes is None or control.should_save:
            return
        is_time = time.monotonic() - self.saved_at >= 60 * self.settings.every_minutes
        is_cheap = self.counters.checkpoint_seconds <= self.settings.max_share * self.counters.seconds
        control.should_save = agree(lambda: is_time and is_cheap)  # the clocks of processes differ


def prepare_checkpoint(checkpoints: Path) -> Path:
    """The folder in which a checkpoint is to be written, empty; every process calls this, and goes on together."""
    state, unfinished = PartialState(), checkpoints / UNFINISHED
    if state.is_main_process:
        remove_folder(unfinished)  # of a run that was killed
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    return unfinished


def commit_checkpoint(unfinished: Path, checkpoint: Path, about: dict[str, Any]) -> None:
    """Give a checkpoint that was written its name, once all of it is on the disk with a manifest: `about`, checksums.

    Every process calls this, and goes on when the checkpoint is there.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        (unfinished / ARGUMENTS).unlink(missing_ok=True)
        files = {str(file.relative_to(unfinished)): _describe(file) for file in _files(unfinished)}
        facts = about | {"processes": state.num_processes, "versions": _versions(), "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        for path in [*_files(unfinished), *(path for path in unfinished.rglob("*") if path.is_dir()), unfinished]:
            flush(path)
        unfinished.rename(checkpoint)
        flush(checkpoint.parent)
    state.wait_for_everyone()


def remove_older(checkpoints: Path, limit: int, best: str | None) -> None:
    """Remove checkpoints that are older than the `limit` newest ones that lie there as written, but not the best.

    By their sizes: to compare all files with their checksums would take as long as to write a checkpoint.
    """
    whole = 0
    for checkpoint in list_checkpoints(checkpoints.parent):
        if whole >= limit and str(checkpoint) != best:
            remove_folder(checkpoint)
        elif not find_fault(checkpoint, compare_checksums=False):
            whole += 1


def find_checkpoint(
    run: Path, log: Callable[[str], object], origin: Mapping[str, Any] = MappingProxyType({})
) -> Path | None:
    """The newest checkpoint of a run that is whole, the same in all processes; broken ones are told and set aside.

    Raises UserError where it comes from another `origin`: other rows, or another base model.
    """
    return agree(lambda: _find_whole(run, log, origin))


def _find_whole(run: Path, log: Callable[[str], object], origin: Mapping[str, Any]) -> Path | None:
    for checkpoint in list_checkpoints(run):
        if not (fault := find_fault(checkpoint)):
            _require_origin(checkpoint, origin)
            log(f"  continues from {checkpoint.name}{_changed_versions(checkpoint)}")
            return checkpoint
        aside = _set_aside(checkpoint)
        log(f"  {checkpoint.name} is broken and set aside as {aside.name}: {fault}")
    return None


def find_fault(checkpoint: Path, compare_checksums: bool = True) -> str:
    """What is wrong with a checkpoint; empty where it holds what was written into it."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        manifest["versions"].keys()  # which is read as soon as the checkpoint is chosen
        for name, written in manifest["files"].items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != written["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes, {written['bytes']:,} were written"
            if compare_checksums and sha256_of_file(file) != written["sha256"]:
                return f"{name} is not what was written, by its SHA-256"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {' '.join(str(error).split())}"
    return ""


def _require_origin(checkpoint: Path, origin: Mapping[str, Any]) -> None:
    written = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    changed = [
        f"{ORIGINS[key]} ({written.get(key)}, now {now})" for key, now in origin.items() if written.get(key) != now
    ]
    if changed:
        raise UserError(
            f"{checkpoint}: it was trained from {' and '.join(changed)}. To train from what is there now, choose "
            "another name=NAME, or overwrite=true, which moves this run aside."
        )


def _set_aside(checkpoint: Path) -> Path:
    names = (f"broken-{checkpoint.name}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    aside = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    return checkpoint.rename(aside)


def _changed_versions(checkpoint: Path) -> str:
    written = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["versions"]
    changes = [f"{name} {old}, now {new}" for name, new in _versions().items() if (old := written.get(name)) != new]
    return f" (written with {'; '.join(changes)})" if changes else ""


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
