"""Every number lies within its limits."""

import math

import pytest

from finetune.config.limits import LIMITS, limit_problem
from finetune.config.schema import Config
from finetune.config.settings import flatten_all, to_plain
from finetune.config.sft_fields import sft_fields


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("adapter.r", 1, None),
        ("adapter.r", 0, "adapter.r=0: it must be at least 1."),
        ("adapter.lora_dropout", math.nan, "adapter.lora_dropout=nan: it must be at least 0 and below 1."),
        ("data.max_train_rows", None, None),
        ("trainer.max_steps", -1, None),
        ("trainer.learning_rate", math.inf, "trainer.learning_rate=inf: it must be above 0, and finite."),
        ("name", "x", None),
    ],
)
def test_a_number_out_of_its_limits_is_a_problem(key, value, problem):
    assert limit_problem(key, value) == problem


def test_limits_are_of_settings_that_exist():
    settings = {*flatten_all(to_plain(Config())), *(f"trainer.{name}" for name in sft_fields())}
    assert LIMITS.keys() <= settings
