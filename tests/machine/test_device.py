import os

import pytest
import torch

from finetune.cli.compose import compose_config
from finetune.machine.allowance import Allowance
from finetune.machine.device import choose_device, hide_other_gpus, keep_to_one_gpu


def test_one_process_keeps_to_one_of_several_gpus_unless_a_launcher_shares_them_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4,5")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert (keep_to_one_gpu(), os.environ["CUDA_VISIBLE_DEVICES"]) == (0, "2,3,4,5")
    monkeypatch.delenv("LOCAL_RANK")
    assert (keep_to_one_gpu(), os.environ["CUDA_VISIBLE_DEVICES"]) == (3, "2")


@pytest.mark.parametrize(("visible", "expected"), [("", "1"), ("3,GPU-ab", "GPU-ab")])
def test_of_the_gpus_that_a_process_sees_one_is_left(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hide_other_gpus(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("asked", "compute", "weights", "why"),
    [
        (["model.dtype=bfloat16"], torch.bfloat16, torch.bfloat16, "set by model.dtype"),
        (
            ["quantization.bnb_4bit_compute_dtype=float16", "model.dtype=float32"],
            torch.float16,
            torch.float32,
            "set by quantization.bnb_4bit_compute_dtype",
        ),
        (["adapter=full", "quantization=none"], None, torch.float32, "all weights are trained, so they are kept in"),
    ],
)
def test_types_follow_from_the_settings_and_are_explained(asked, compute, weights, why):
    config = compose_config(asked)
    device = choose_device(config.model, config.quantization, config.adapter)
    assert compute in (None, device.compute_dtype)
    assert device.weight_dtype == weights and why in device.why


def test_whoever_has_the_device_knows_what_the_run_may_use_of_it():
    config, allowance = compose_config([]), Allowance(runs_at_a_time=3, known_to_fit=True)
    device = choose_device(config.model, config.quantization, config.adapter, allowance, spare_gpus=2)
    assert device.allowance == allowance and device.spare_gpus == 2
