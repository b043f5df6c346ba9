"""A checkpoint is there as a whole or not at all, and what was damaged since is found and set aside."""

import json
import os
from itertools import count

import pytest

from finetune.errors import UserError
from finetune.training.checkpoints import (
    commit_checkpoint,
    find_checkpoint,
    find_fault,
    prepare_checkpoint,
    remove_older,
)

FILES = ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "more/a.bin"]
DAMAGES = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "emptied": lambda file: os.truncate(file, 0),
    "deleted": lambda file: file.unlink(),
    "one bit flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
}


class KilledError(BaseException):
    """Stands for the end of the process, within an operation on a file."""


def save(run, step):
    """What the trainer does to save a checkpoint, with files of a few bytes."""
    checkpoints = run / "checkpoints"
    written = prepare_checkpoint(checkpoints) / f"checkpoint-{step}"
    for name in (*FILES, "training_args.bin"):
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).write_text(f"{name} of step {step}")
    commit_checkpoint(written, checkpoints / f"checkpoint-{step}", {"step": step, "data": "fingerprint"})
    return checkpoints / f"checkpoint-{step}"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_file_is_named_the_checkpoint_set_aside_and_the_one_before_used(tmp_path, name, damage):
    before, newest = save(tmp_path, 4), save(tmp_path, 8)
    assert find_fault(newest) == find_fault(before) == ""
    DAMAGES[damage](newest / name)
    assert name in find_fault(newest)
    log = []
    assert find_checkpoint(tmp_path, log.append) == before
    broken, goes_on = log
    assert "checkpoint-8 is broken and set aside as broken-checkpoint-8:" in broken and name in broken
    assert goes_on == "  continues from checkpoint-4"
    assert not newest.exists() and newest.with_name("broken-checkpoint-8").is_dir()


@pytest.mark.parametrize("key", ["files", "versions"])
def test_a_manifest_that_lost_a_key_is_no_manifest(tmp_path, key):
    before, newest = save(tmp_path, 4), save(tmp_path, 8)
    manifest = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text(manifest.replace(f'"{key}"', f'"{key[:-1]}r"'))
    assert "manifest.json cannot be read" in find_fault(newest)
    assert find_checkpoint(tmp_path, lambda _: None) == before


def test_broken_checkpoints_of_one_step_are_all_kept(tmp_path):
    for name in ("broken-checkpoint-8", "broken-checkpoint-8-2"):
        (save(tmp_path, 8) / "optimizer.pt").unlink()
        assert find_checkpoint(tmp_path, lambda _: None) is None
        assert (tmp_path / "checkpoints" / name).is_dir()


def test_a_run_killed_at_any_operation_of_a_save_goes_on_from_a_whole_checkpoint(tmp_path, monkeypatch):
    ended = []
    for at in count():
        run, done = tmp_path / str(at), count()
        save(run, 4)

        def until_killed(operation, done=done, at=at):
            def call(*args, **kwargs):
                if next(done) == at:
                    raise KilledError
                return operation(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "unlink", "mkdir", "open"):
                patch.setattr(os, name, until_killed(getattr(os, name)))
            try:
                save(run, 8)
                finished = True
            except KilledError:
                finished = False
        found = find_checkpoint(run, lambda _: None)
        assert found is not None and find_fault(found) == ""
        ended.append(found.name)
        save(run, 12)  # what was left unfinished is in nobody's way
        assert find_checkpoint(run, lambda _: None).name == "checkpoint-12"
        if finished:
            break
    assert len(ended) > len(FILES) and ended[0] == "checkpoint-4" and ended[-1] == "checkpoint-8"
    assert ended == sorted(ended, key=lambda name: int(name.rpartition("-")[2]))  # once it is there, it stays


def test_other_versions_are_told_where_a_run_continues(tmp_path):
    checkpoint = save(tmp_path, 4)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["step"] == 4 and manifest["data"] == "fingerprint" and manifest["processes"] == 1
    manifest["versions"]["peft"] = "0.1"
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    log = []
    find_checkpoint(tmp_path, log.append)
    assert log[0].startswith("  continues from checkpoint-4 (written with peft 0.1, now ")


def test_the_arguments_that_transformers_pickles_are_not_kept(tmp_path):
    assert not (save(tmp_path, 4) / "training_args.bin").exists()


def test_older_checkpoints_are_removed_but_the_best_and_those_that_a_broken_one_does_not_stand_for(tmp_path):
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    checkpoints = tmp_path / "checkpoints"
    os.truncate(checkpoints / "checkpoint-8" / "optimizer.pt", 0)
    remove_older(checkpoints, 2, str(checkpoints / "checkpoint-2"))
    assert {path.name[11:] for path in checkpoints.glob("checkpoint-*")} == {"2", "6", "8", "10"}


def test_a_checkpoint_of_other_rows_or_another_base_is_refused(tmp_path):
    save(tmp_path, 4)
    assert find_checkpoint(tmp_path, lambda _: None, {"data": "fingerprint"}).name == "checkpoint-4"
    with pytest.raises(UserError, match=r"trained from other rows \(fingerprint, now changed\).*overwrite=true"):
        find_checkpoint(tmp_path, lambda _: None, {"data": "changed"})
