"""What the machine, the model's shapes or the rows make impossible is told before any weight is loaded."""

import json

import pytest
import torch
from support import builds

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.machine.device import Device
from finetune.training.fit_checks import bias_notes, check_machine


@pytest.fixture
def rows(tmp_path):
    """Settings of a run on twenty rows, of which sixteen are trained on."""
    lines = [json.dumps({"prompt": f"question {number}", "completion": f"{number}"}) for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return ["data=local", f"data.path={tmp_path / 'rows.jsonl'}", "trainer.per_device_train_batch_size=4"]


RULES = {
    "a context that is too short": (
        ["trainer.max_length=2000"],
        "trainer.max_length=2000: the model's context is 1024 tokens. Write trainer.max_length=1024.",
    ),
    "modules that are not there": (
        ["adapter.target_modules=[q_prj,v_proj]"],
        "adapter.target_modules: this model has no module q_prj. Did you mean q_proj? Linear layers here: down_proj, "
        "gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj.",
    ),
    "modules to save that are not there": (
        ["adapter.modules_to_save=[classifier]"],
        "adapter.modules_to_save: this model has no module classifier.",
    ),
    "layers that are not there": (
        ["adapter.layers_to_transform=[0,2]", "adapter.target_modules=[q_proj]"],
        "adapter.layers_to_transform=[0,2]: the model has layers 0 to 1.",
    ),
    "a row longer than the context": (
        ["trainer.max_length=null", "data.system='" + 1100 * "word " + "'"],
        "and the model's context is 1,024. Write trainer.max_length=1024.",
    ),
    "a step of more rows than there are": (
        ["trainer.gradient_accumulation_steps=5"],
        "trainer.per_device_train_batch_size=4 x trainer.gradient_accumulation_steps=5 x 1 processes: one step takes "
        "20 rows, and there are 16 to train on.",
    ),
    "a warm-up as long as training": (
        ["trainer.warmup_steps=4"],
        "trainer.warmup_steps=4: training has 4 steps, so that the learning rate would never be reached.",
    ),
    "float16 on a CPU": (["trainer.fp16=true", "trainer.bf16=false"], "trainer.fp16=true: a CPU does not train in"),
    "tf32 on a CPU": (["trainer.tf32=true"], "trainer.tf32=true: it is for NVIDIA GPUs"),
}


@pytest.mark.parametrize("rule", RULES)
def test_it_is_refused_and_says_what_to_write(rows, tiny_model, rule):
    overrides, expected = RULES[rule]
    with pytest.raises(UserError) as error:
        builds.prepared([*rows, "model=local", f"model.path={tiny_model}", *overrides])
    assert expected in str(error.value)


def test_all_of_it_is_told_at_once(rows, tiny_model):
    with pytest.raises(UserError) as error:
        builds.prepared(
            [*rows, "model=local", f"model.path={tiny_model}", "trainer.max_length=2000", "trainer.warmup_steps=9"]
        )
    assert str(error.value).startswith("2 problems\n")


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    old = Device("cuda", "old GPU", torch.float16, torch.float16, "", 1, True)
    with pytest.raises(UserError) as error:
        check_machine(compose_config(["trainer.bf16=true"]), old)
    message = "trainer.bf16=true: this GPU has no native bfloat16. Leave it out for the machine's best."
    assert str(error.value) == message
    check_machine(compose_config(["trainer.bf16=false"]), old)


def test_training_biases_of_a_quantised_base_is_said():
    [note] = bias_notes(compose_config(["adapter.bias=all"]))
    assert note.startswith("adapter.bias=all: biases of the base are trained too (biases are not quantised)")
    assert list(bias_notes(compose_config([]))) == []
