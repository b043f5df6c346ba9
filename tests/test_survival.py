"""Whatever happens to a run, it says so, loses nothing that was good, and ends as if nothing had happened."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import small_runs
from torch.nn import functional

from finetune.cli.compose import compose_config
from finetune.runs.files import DiskFullError, read_jsonl
from finetune.runs.folder import list_checkpoints, run_folder
from finetune.training.checkpoints import find_fault

ROOT = Path(__file__).parents[1]
STEPS = ["trainer.max_steps=6", "trainer.logging_steps=1", "trainer.save_steps=2", "trainer.eval_strategy=no"]


def folder_of(overrides):
    return run_folder(compose_config(overrides))


def losses(overrides):
    """By step."""
    history = read_jsonl(folder_of(overrides) / "history.jsonl")
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def weights(overrides):
    return load_file(folder_of(overrides) / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def in_training(monkeypatch):
    """`in_training(change)` has `change(call, labels, loss)` decide what the loss of each micro-batch is."""
    plain, calls = functional.cross_entropy, []

    def use(change):
        calls.clear()

        def cross_entropy(logits, labels, **given):
            loss = plain(logits, labels, **given)
            if not loss.requires_grad:
                return loss
            calls.append(len(labels))
            return change(len(calls), len(labels), loss)

        monkeypatch.setattr(functional, "cross_entropy", cross_entropy)
        return calls

    return use


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(tiny_run, in_training, capsys):
    poisoned = [*tiny_run, *STEPS, "name=poisoned"]
    in_training(lambda call, _, loss: loss * float("nan") if call == 3 else loss)
    result, _ = small_runs.finished(poisoned)
    assert result.training.steps == 6 and result.training.skipped_updates == 1
    told = capsys.readouterr().out
    assert "step 3: the loss is nan, the gradient's norm nan; the step changes nothing" in told
    assert "1 of 6 steps had a loss or gradient that is not finite" in told
    by_step = losses(poisoned)
    assert by_step[3] is None and all(by_step[step] for step in (1, 2, 4, 5, 6))  # shown as it is
    assert all(torch.isfinite(weight).all() for weight in weights(poisoned).values())


def test_steps_in_a_row_that_are_not_finite_end_the_run_and_the_last_good_weights_are_named(tiny_run, in_training):
    in_training(lambda call, _, loss: loss * float("inf") if call >= 3 else loss)
    overrides = [*tiny_run, *STEPS, "name=diverged"]
    kept = folder_of(overrides) / "checkpoints" / "checkpoint-5"
    with pytest.raises(FloatingPointError) as error:
        small_runs.finished(overrides)
    assert "not finite in 3 steps in a row, now at step 5: it diverged" in str(error.value)
    assert str(error.value).endswith(f"The last good weights are in {kept}.")
    good = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in good.values())
    assert list_checkpoints(folder_of(overrides))[0] == kept and find_fault(kept) == ""


@pytest.mark.slow
def test_where_memory_runs_out_micro_batches_are_halved_and_all_else_stays(tiny_run, in_training, capsys):
    overrides = [*tiny_run, *STEPS, "trainer.gradient_accumulation_steps=2", "data.max_train_rows=64"]
    calls = in_training(lambda call, _, loss: loss)
    whole, _ = small_runs.finished([*overrides, "name=whole"])
    too_much = set(calls)  # the labels of the micro-batches, none of which has as many as half of another

    def run_out(call, size, loss):
        if call >= 6 and size in too_much:  # in the second half of step 3
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    in_training(run_out)
    halved, _ = small_runs.finished([*overrides, "name=halved"])
    assert (whole.training.rows_at_a_time, halved.training.rows_at_a_time) == (4, 2)
    told = capsys.readouterr().out
    assert "out of memory in step 3: micro-batches of 4 rows are computed 2 at a time from now on" in told
    for name in ("steps", "tokens", "loss_tokens", "epochs"):
        assert getattr(halved.training, name) == getattr(whole.training, name)
    one, other = losses([*overrides, "name=halved"]), losses([*overrides, "name=whole"])
    assert one == pytest.approx(other, rel=1e-4) and len(one) == 6
    for name, weight in weights([*overrides, "name=whole"]).items():
        torch.testing.assert_close(weights([*overrides, "name=halved"])[name], weight, rtol=1e-2, atol=1e-5)
    in_training(lambda call, size, loss: run_out(9, calls[0], loss))
    with pytest.raises(torch.OutOfMemoryError):  # and not retried for ever
        small_runs.finished([*overrides, "name=hopeless"])


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for one checkpoint of the tiny model, and a function that makes more."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", folder], check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield lambda: subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_the_reason_and_the_last_checkpoint_stays(tiny_run, tmp_path, small_disk):
    small = [*tiny_run, *STEPS]
    with pytest.raises(DiskFullError, match=r"the disk is full .* Make room, and the same command goes on"):
        small_runs.finished(small)
    [kept] = list_checkpoints(folder_of(small))
    assert kept.name == "checkpoint-2" and find_fault(kept) == ""
    assert not (kept.parent / ".unfinished").exists()
    small_disk()
    result, predictions = small_runs.finished(small)
    assert result.training.resumed_from_step == 2
    expected, answered = small_runs.finished([*small, f"output_dir={tmp_path / 'elsewhere'}"])
    assert predictions == answered and result.training.train_loss == expected.training.train_loss


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "dtype"), [(0, "float32"), (1, "float32"), (2, "bfloat16")])
def test_killed_at_random_moments_it_ends_bit_for_bit_as_if_nothing_had_happened(tiny_run, seed, dtype):
    settings = [*tiny_run, f"seed={seed}", f"model.dtype={dtype}", "adapter.lora_dropout=0.1", "trainer.max_steps=-1"]
    settings += ["trainer.num_train_epochs=2", "data.max_train_rows=160", "trainer.gradient_accumulation_steps=2"]
    settings += ["trainer.save_steps=3", "trainer.eval_steps=10", "trainer.logging_steps=4", "eval.batch_size=1"]
    script = [sys.executable, str(ROOT / "tests" / "support" / "killed_runs.py"), str(seed)]
    told = {"check": True, "capture_output": True, "text": True}
    seconds = subprocess.run([*script, "0", "0", *settings, "name=whole"], **told).stderr.split()[-1]
    ended = subprocess.run([*script, "7", str(0.8 * float(seconds)), *settings, "name=killed"], **told)
    assert "killed after" in ended.stderr
    whole, killed = [*settings, "name=whole"], [*settings, "name=killed"]
    assert losses(killed) == losses(whole)
    ours = weights(killed)
    assert all(torch.equal(ours[name], weight) for name, weight in weights(whole).items())
    (expected, answered), (result, predictions) = small_runs.finished(whole), small_runs.finished(killed)
    assert predictions == answered
    for arm, scored in expected.evaluation.arms.items():
        assert result.evaluation.arms[arm].scores == scored.scores
    for name in ("steps", "tokens", "loss_tokens", "train_loss", "validation_loss"):
        assert getattr(result.training, name) == getattr(expected.training, name)


def launch(overrides, places=(ROOT, ROOT)):
    """Two processes of one run, each begun in its place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *overrides],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
        )
        for rank, place in enumerate(places)
    ]


def ends(processes):
    """The exit codes of processes and what they said of errors."""
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], "".join(errors)


@pytest.mark.slow
def test_two_processes_that_are_killed_continue_to_the_result_that_they_would_have_had(tiny_run, monkeypatch):
    settings = [*tiny_run, "trainer.max_steps=60", "trainer.save_steps=5", "trainer.eval_strategy=no"]
    settings += ["adapter.lora_dropout=0.1", "trainer.num_train_epochs=1", "trainer.logging_steps=3"]
    whole, killed = [*settings, "name=whole"], [*settings, "name=killed"]
    assert ends(launch(whole))[0] == [0, 0]
    processes = launch(killed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    while len(list_checkpoints(folder_of(killed))) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert ends(processes)[0] == [-signal.SIGKILL] * 2
    codes, errors = ends(launch(killed))
    assert codes == [0, 0], errors
    assert losses(killed) == losses(whole)
    ours = weights(killed)
    assert all(torch.equal(ours[name], weight) for name, weight in weights(whole).items())
    assert (folder_of(killed) / "predictions.jsonl").read_text() == (folder_of(whole) / "predictions.jsonl").read_text()


@pytest.mark.slow
def test_a_run_whose_processes_do_not_share_a_folder_is_refused(tiny_run, tmp_path):
    places = [tmp_path / "one", tmp_path / "other"]
    for place in places:
        place.mkdir()
    codes, errors = ends(launch([*tiny_run, "output_dir=outputs"], places))
    assert codes == [2, 2], errors
    assert errors.count("process 1 of 2 does not see this folder of the first process") == 2
    assert not (places[0] / "outputs" / "checkpoints").exists()
