"""Test prompts that are trained on are found, however they are dressed."""

import random
from dataclasses import replace

import pytest

from finetune.cli.compose import compose_config
from finetune.config.schema import OverlapPolicy
from finetune.data.overlap import check_overlap
from finetune.data.splits import Example, Splits, load_splits
from finetune.errors import UserError

WORDS = [f"word{number}" for number in range(400)]


def example(text, place, answer="yes", system="Answer the question."):
    return Example([{"role": "system", "content": system}, {"role": "user", "content": text}], answer, place)


def texts(count, seed, words=12):
    draw = random.Random(seed)
    return [" ".join(draw.sample(WORDS, words)) for _ in range(count)]


def splits(test, train=None):
    train = texts(60, 1) if train is None else train
    return Splits(
        [example(text, f"train:{i}") for i, text in enumerate(train)],
        [example(text, f"validation:{i}") for i, text in enumerate(texts(5, 2))],
        [example(text, f"test:{i}") for i, text in enumerate(test)],
        {"train": len(train), "validation": 5, "test": len(test)},
        "",
    )


def test_a_group_of_the_test_rows_that_is_trained_on_is_an_error_or_dropped():
    given = splits(texts(6, 3))
    given.train[7] = replace(given.train[7], group="Ann")
    given.test[2] = replace(given.test[2], group="Ann")
    with pytest.raises(UserError, match=r"test:2: this test group is trained on: 1 test rows .* by group: .*train:7"):
        check_overlap(given, OverlapPolicy.error)
    dropped = check_overlap(given, OverlapPolicy.drop)
    assert [one.place for one in given.train if one not in dropped.train] == ["train:7"] and not dropped.shared


TRAINED = texts(60, 1)[7]
DRESSED = {
    "as it is": TRAINED,
    "in other case": TRAINED.upper(),
    "with other spaces": TRAINED.replace(" ", "  \n"),
    "with punctuation": f"«{TRAINED.replace(' ', ', ')}»?",
    "in full-width letters": "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in TRAINED),
}


@pytest.mark.parametrize("dress", DRESSED)
def test_a_test_prompt_that_is_trained_on_is_an_error_or_dropped_or_allowed(dress):
    given = splits([*texts(5, 3), DRESSED[dress]])
    with pytest.raises(UserError) as error:
        check_overlap(given, OverlapPolicy.error)
    assert str(error.value).startswith("test:5: this test prompt is trained on: 1 test rows stand in train ")
    assert "test:5 (as train:7)" in str(error.value) and "data.overlap=drop" in str(error.value)
    allowed = check_overlap(given, OverlapPolicy.allow)
    assert allowed.train == given.train and "test:5 (as train:7)" in allowed.shared[0]
    dropped = check_overlap(given, OverlapPolicy.drop)
    assert [one.place for one in given.train if one not in dropped.train] == ["train:7"]
    assert dropped.counts == {"train": 59, "validation": 5, "test": 6, "overlapping": 1}
    assert not dropped.shared


def test_a_prompt_with_two_words_changed_is_reported_and_no_error():
    words = TRAINED.split()
    words[2], words[8] = "other", "another"
    found = check_overlap(splits([*texts(5, 3), " ".join(words)]), OverlapPolicy.error)
    assert found.shared == [
        f"1 test rows stand in train nearly, by {by}: test:5 (as train:7)" for by in ("prompt", "prompt and answer")
    ]


def test_an_instruction_that_all_prompts_share_makes_none_of_them_alike():
    instruction = " ".join(WORDS[:30])
    given = splits(
        [f"{instruction} {text}" for text in texts(20, 3, 4)], [f"{instruction} {text}" for text in texts(60, 4, 4)]
    )
    assert check_overlap(given, OverlapPolicy.error).shared == []


def test_rows_of_no_words_are_compared_as_they_are():
    found = check_overlap(splits(["!!!", "?"], ["??", "!!! ", *texts(9, 1)]), OverlapPolicy.allow)
    assert [one for one in found.shared if "by prompt:" in one] == [
        "1 test rows stand in train but for case, punctuation and whitespace, by prompt: test:0 (as train:1)"
    ]


def test_validation_prompts_that_are_in_test_are_dropped_from_validation():
    given = splits([texts(5, 2)[3]])
    assert "1 test rows stand in validation word for word" in check_overlap(given, OverlapPolicy.error).shared[0]
    dropped = check_overlap(given, OverlapPolicy.drop)
    assert [one.place for one in dropped.validation] == [f"validation:{i}" for i in (0, 1, 2, 4)]


def test_dropping_every_row_is_an_error():
    with pytest.raises(UserError, match=r"data\.overlap=drop leaves no train rows"):
        check_overlap(splits(texts(60, 1)), OverlapPolicy.drop)


def test_plain_text_is_compared_too():
    rows = [Example([], text, f"train:{i}") for i, text in enumerate(texts(20, 1))]
    given = Splits(rows, [Example([], "one", "v:1")], [Example([], rows[3].completion.upper(), "test:1")], {}, "")
    with pytest.raises(UserError, match=r"test:1 \(as train:3\)"):
        check_overlap(given, OverlapPolicy.error)


def test_rows_that_are_split_here_never_share_a_prompt(tmp_path):
    rows = "".join(f'{{"prompt": "Question {i % 40}{"?" * (i % 3)}", "completion": "{i}"}}\n' for i in range(120))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = compose_config(["data=local", f"data.path={tmp_path / 'rows.jsonl'}"])
    found = check_overlap(load_splits(config.data), OverlapPolicy.error)
    assert not any("by prompt:" in one for one in found.shared)


def test_the_embedded_addresses_are_split_without_overlap():
    found = check_overlap(load_splits(compose_config([]).data), OverlapPolicy.error)
    assert all("nearly" in one for one in found.shared)
