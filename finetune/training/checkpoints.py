"""From where does a run continue? From a checkpoint that lies on the disk as it was written, and from no other."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from finetune.data.checksums import sha256_of_file
from finetune.runs.folder import list_checkpoints

MANIFEST = "manifest.json"  # what was written into a checkpoint, and by what
UNFINISHED = ".unfinished"  # where one is written, beside those that are whole
ARGUMENTS = "training_args.bin"  # transformers', a pickle that nobody reads
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def prepare_checkpoint(checkpoints: Path) -> Path:
    """The folder in which a checkpoint is to be written, empty; every process calls this, and goes on together."""
    state, unfinished = PartialState(), checkpoints / UNFINISHED
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
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
            _flush(path)
        unfinished.rename(checkpoint)
        _flush(checkpoint.parent)
    state.wait_for_everyone()


def find_checkpoint(run: Path, log: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole, the same in all processes; broken ones are told and set aside."""
    chosen: list[Path | None] = [None]
    if PartialState().is_main_process:
        for checkpoint in list_checkpoints(run):
            if not (fault := find_fault(checkpoint)):
                chosen = [checkpoint]
                log(f"  continues from {checkpoint.name}{_changed_versions(checkpoint)}")
                break
            aside = _set_aside(checkpoint)
            log(f"  {checkpoint.name} is broken and set aside as {aside.name}: {fault}")
    broadcast_object_list(chosen)
    return chosen[0]


def find_fault(checkpoint: Path) -> str:
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
            if sha256_of_file(file) != written["sha256"]:
                return f"{name} is not what was written, by its SHA-256"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {' '.join(str(error).split())}"
    return ""


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


def _flush(path: Path) -> None:
    """Have the system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
