"""What the machine and the size of the model decide where the user does not."""

from pathlib import Path

import pytest
import torch

from finetune.machine.device import Device
from finetune.training.prepare import CHECKPOINTING_FROM, build_sft_config, checkpointing_name

CPU = Device("cpu", "a CPU", torch.float32, torch.float32, "", 1, True)


def build(chosen=None, machine=CPU, parameters=1000):
    return build_sft_config(chosen or {}, machine, Path("run"), 3, parameters)


def recomputes(chosen, parameters):
    return getattr(build(chosen, parameters=parameters), checkpointing_name())


@pytest.mark.parametrize(
    ("chosen", "parameters", "expected"),
    [
        ({}, CHECKPOINTING_FROM - 1, False),
        ({}, CHECKPOINTING_FROM, True),
        ({"activation_checkpointing": False}, CHECKPOINTING_FROM, False),
        ({"activation_checkpointing": True}, 1000, True),
    ],
)
def test_large_models_recompute_activations_unless_told_otherwise(chosen, parameters, expected):
    assert recomputes(chosen, parameters) is expected


def test_the_run_decides_the_folder_and_the_seed_unless_told_otherwise():
    settings = build()
    assert (settings.output_dir, settings.seed, settings.use_cpu) == ("run/checkpoints", 3, True)
    assert build({"seed": 5}).seed == 5


def test_the_precision_is_the_machines_unless_told_otherwise():
    settings = build()
    assert not settings.bf16 and not settings.fp16
    amx = Device("cpu", "a CPU", torch.bfloat16, torch.bfloat16, "", 1, True)
    assert build(machine=amx).bf16
    assert not build({"bf16": False}, machine=amx).bf16
    in_half = build({"fp16": True}, machine=amx)
    assert in_half.fp16 and not in_half.bf16
