"""Runs share what they have in common, and nothing else."""

import pytest

from finetune.cli.compose import compose_config
from finetune.runs.cache_keys import cost_key, rows_key


@pytest.mark.parametrize(
    ("override", "same_rows", "same_cost"),
    [
        ("trainer.learning_rate=3e-3", True, True),
        ("trainer.logging_steps=3", True, True),
        ("seed=7", True, True),
        ("trainer.max_steps=9", True, False),
        ("adapter.r=4", True, False),
        ("trainer.max_length=64", False, False),
        ("data.seed=7", False, False),
        ("data.max_train_rows=64", False, False),
    ],
)
def test_a_setting_changes_the_rows_the_cost_or_neither(override, same_rows, same_cost):
    plain, other = compose_config([]), compose_config([override])
    assert (rows_key(plain) == rows_key(other)) == same_rows
    assert (cost_key(plain) == cost_key(other)) == same_cost
