"""What every message about a mistake is made of."""

import pytest

from finetune.errors import UserError, describe_value, did_you_mean, nearest_option, raise_problems, suggest_or_list


def test_one_problem_is_told_alone_and_several_together():
    raise_problems([])
    with pytest.raises(UserError, match=r"^one$"):
        raise_problems(["one"])
    with pytest.raises(UserError, match=r"^2 problems\n  one\n  two$"):
        raise_problems(["one", "two"])


def test_the_nearest_option_is_suggested_or_all_are_listed():
    assert did_you_mean("usadress", ["hub", "usaddress"], "data=") == " Did you mean data=usaddress?"
    assert did_you_mean("zzz", ["hub", "usaddress"]) == ""
    assert suggest_or_list("zzz", ["hub", "usaddress"]) == " There is: hub, usaddress."
    assert nearest_option("prompts", ["prompt"], cutoff=0.95) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (False, "false"),
        (12, "the number 12"),
        ({"a": 1}, 'the object {"a": 1}'),
        ("\ud800", 'the text "\\ud800"'),
        ("x" * 100, 'the text "' + "x" * 56 + "..."),
    ],
)
def test_a_value_is_described_in_a_users_words(value, words):
    assert describe_value(value) == words
