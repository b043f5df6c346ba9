import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from finetune.cli.compose import compose_config
from finetune.machine import device, process_memory
from finetune.machine.device import Device, keep_to_one_gpu
from finetune.runs.cache_keys import base_key
from finetune.sweeps.fork_server import _share_machine
from finetune.sweeps.jobs import CostSurvey

GPUS = """
import sys
import torch

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
    monkeypatch.setattr(device, "runs_at_a_time", 1)
    monkeypatch.setattr(device, "inherited_bytes", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    _share_machine(CostSurvey([], 4, 1, 1, 2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected and process_memory.runs_at_a_time == 2


def test_one_process_keeps_to_one_of_several_gpus_unless_a_launcher_shares_them_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(device, "_spare_gpus", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4,5")
    monkeypatch.setenv("LOCAL_RANK", "0")
    keep_to_one_gpu()
    assert (os.environ["CUDA_VISIBLE_DEVICES"], device._spare_gpus) == ("2,3,4,5", 0)
    monkeypatch.delenv("LOCAL_RANK")
    keep_to_one_gpu()
    assert (os.environ["CUDA_VISIBLE_DEVICES"], device._spare_gpus) == ("2", 3)
