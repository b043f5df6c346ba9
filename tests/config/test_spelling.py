"""Values are spelt as on the command line."""

import pytest

from finetune.config.schema import Dtype
from finetune.config.spelling import spell, spell_quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-05, "1e-05"),
        ("a b", "a b"),
        (Dtype.bfloat16, "bfloat16"),
        (["q_proj", None, 3], "[q_proj,null,3]"),
        ({"a": [True], "b": "c"}, "{a:[true],b:c}"),
    ],
)
def test_a_value_is_spelt_as_on_the_command_line(value, text):
    assert spell(value) == text


def test_a_text_stays_a_text_in_an_override():
    assert spell_quoted("1e3") == "'1e3'"
    assert spell_quoted(3) == "3"
