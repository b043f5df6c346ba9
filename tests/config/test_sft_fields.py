"""The fields of SFTConfig are read from its source, without importing it."""

import dataclasses

import pytest

from finetune.config.sft_fields import sft_fields


def test_the_fields_read_from_source_are_those_of_the_installed_trl():
    from trl import SFTConfig

    assert set(sft_fields()) == {field.name for field in dataclasses.fields(SFTConfig) if field.init}


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("learning_rate", [1e-4, 1], ["fast", None, True]),
        ("max_steps", [3, -1], [3.5, "3", None]),
        ("packing", [True, False], [1, "yes", None]),
        ("bf16", [True, None], ["yes"]),
        ("max_length", [512, None], ["long", 1.5]),
        ("optim", ["adamw_torch", "adamw_8bit"], ["adam", 3]),
        ("eval_strategy", ["no", "steps", "epoch"], ["never", False]),
        ("save_strategy", ["best"], ["never"]),
        ("packing_strategy", ["bfd_split"], ["best"]),
        ("lr_scheduler_kwargs", [{"num_cycles": 1}, None], [3]),
        ("pad_to_multiple_of", [8, "auto", None], [1.5]),
        ("report_to", ["none", ["tensorboard"], None], [3]),
        ("eval_steps", [25, 0.1, None], ["often"]),
        ("parallelism_config", [None], ["x", {}]),
    ],
)
def test_a_field_takes_what_sft_config_takes(name, accepted, refused):
    field = sft_fields()[name]
    assert all(field.accepts(value) for value in accepted)
    assert not any(field.accepts(value) for value in refused)
