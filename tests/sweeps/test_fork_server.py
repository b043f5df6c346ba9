"""Trials have processes of their own, and what they and the sweep tell each other may be as large as it is."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.cli.compose import compose_config
from finetune.machine.device import Device
from finetune.model.base import base_key
from finetune.runs.outcome import RunState
from finetune.sweeps.fork_client import CostSurvey, DeviceShare, ForkServerClient, News, TrialJob
from finetune.sweeps.fork_server import take_share

GPUS = """
import sys
import torch
from finetune.sweeps import preload

touched = []
torch.cuda._lazy_init = lambda: touched.append(True)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
assert preload.import_libraries() == 2
assert not touched and "transformers.modeling_utils" in sys.modules
try:
    import peft
except AttributeError:  # of a PyTorch that knows no CUDA
    pass
assert touched  # so that what imports bitsandbytes has to wait for the fork
"""
# In place of run.py: what a trial does follows from its seed.
SCRIPT = """
import time


def run(config, allowance, loaded, report_progress):
    if config.seed == 1:
        raise ValueError(config.data.system)
    if config.seed == 2:
        report_progress("x" * 5_000_000)
    if config.seed == 3:
        report_progress(f"at most {allowance.runs_at_a_time} at a time, known to fit: {allowance.known_to_fit}")
        time.sleep(1000)
"""
SHARE = DeviceShare(threads=1, device=None, runs_at_a_time=1)
LARGE = 3_000_000


@pytest.mark.slow
def test_what_trials_are_forked_from_leaves_gpus_alone():
    subprocess.run([sys.executable, "-c", GPUS], check=True, timeout=120)


def test_trials_share_the_base_model_however_many_threads_they_have():
    config = compose_config([])
    single = Device("cpu", "x86_64 CPU, 1 thread", torch.float32, torch.float32, "", 1, True)
    keys = [
        base_key(config.model, config.quantization, machine)
        for machine in (single, replace(single, name="2 threads"), replace(single, compute_dtype=torch.bfloat16))
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("3,GPU-ab", "GPU-ab")])
def test_a_trial_sees_only_the_gpu_that_it_is_given(monkeypatch, visible, expected):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    allowance = take_share(DeviceShare(threads=1, device=1, runs_at_a_time=2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected and allowance.runs_at_a_time == 2
    assert not allowance.known_to_fit and allowance.inherited_bytes > 0


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """What speaks to the process that trials are forked from, which calls SCRIPT for each."""
    script = tmp_path_factory.mktemp("script") / "run.py"
    script.write_text(SCRIPT)
    client = ForkServerClient(script)
    yield client
    client.close()


@pytest.fixture
def server(client):
    """That process is running."""
    client.start()
    return client


def job(tmp_path, number, system=None):
    """A trial without data, whose seed is its number."""
    missing = tmp_path / "rows.jsonl"
    missing.touch()
    asked = ["data=local", f"data.path={missing}", f"output_dir={tmp_path}", f"seed={number}", "tracking=none"]
    config = compose_config(asked)
    config.data.system = system
    return TrialJob(number, config, SHARE, known_to_fit=True, base_fits=False)


def news_until(client, last):
    """What the client receives up to a message of this kind, a field of News."""
    received, limit = [], time.monotonic() + 120
    while not (received and getattr(received[-1], last) not in (None, "")):
        assert time.monotonic() < limit
        if (news := client.receive(1.0)) is not None:
            received.append(news)
    return received


def test_a_configuration_and_a_reason_of_millions_of_characters_go_through(server, tmp_path):
    server.send(job(tmp_path, 1, system="why " * (LARGE // 4)))
    began, concluded, ended = news_until(server, "status")
    assert began == News(1, pid=began.pid) and began.pid
    state, reason = concluded.conclusion
    assert state is RunState.failed and "ValueError: why why" in reason and len(reason) > LARGE
    assert ended == News(1, status=0)


def test_a_trial_that_is_killed_in_the_midst_of_a_message_breaks_no_other(server, tmp_path):
    server.send(job(tmp_path, 3))
    [*_, progressed] = news_until(server, "note")
    assert progressed == News(3, note="at most 1 at a time, known to fit: True")
    server.send(job(tmp_path, 2))
    time.sleep(2)  # it fills its pipe, which nobody reads
    [began] = news_until(server, "pid")
    os.kill(began.pid, signal.SIGKILL)
    assert news_until(server, "status") == [News(2, status=signal.SIGKILL)]
    server.send(job(tmp_path, 4))
    assert news_until(server, "status")[1:] == [News(4, conclusion=(RunState.complete, "")), News(4, status=0)]


def test_a_thousand_configurations_are_planned_in_one_message(server, tmp_path):
    wrong = replace(job(tmp_path, 0).config, name=None)
    server.send(CostSurvey([replace(wrong, seed=seed) for seed in range(1000)], 1000, SHARE))
    _, surveyed, ended = news_until(server, "status")
    assert ended == News(-1, status=0)
    assert len(surveyed.costs) == 1000 and len(set(surveyed.costs)) == 1
    assert "rows.jsonl holds no rows" in surveyed.costs[0]


def test_the_trials_end_with_the_client(server, tmp_path):
    server.send(job(tmp_path, 3))
    began, _ = news_until(server, "note")
    os.kill(began.pid, 0)  # it runs
    server.close()
    limit = time.monotonic() + 5
    while lives(began.pid):
        assert time.monotonic() < limit
        time.sleep(0.05)


def lives(pid):
    """Whether the process runs; one that has ended may still wait to be noticed by its parent."""
    with suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False
