import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.config.schema import Data, Source
from finetune.data.splits import data_digest, load_splits, normalise_text, question_of
from finetune.errors import UserError

ROWS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(50)]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Write rows to a file in an empty working folder and describe them; other settings are passed on."""
    monkeypatch.chdir(tmp_path)

    def describe(rows=ROWS, recipe="prompt_completion", path="mine.jsonl", **settings):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Data(name="mine", source=Source.local, path=path, recipe=recipe, metrics=["chrf"], **settings)

    return describe


@pytest.fixture
def usaddress():
    settings = yaml.safe_load((CHECKOUT / "conf/data/usaddress.yaml").read_text())
    return Data(**{**settings, "source": Source.embedded})


def message_of(described):
    with pytest.raises(UserError) as error:
        load_splits(described)
    return str(error.value)


def prompts(examples):
    return {example.prompt[-1]["content"] for example in examples}


def test_every_row_stands_in_one_split(local):
    splits = load_splits(local())
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [40, 5, 5]
    assert len(prompts(splits.train) | prompts(splits.validation) | prompts(splits.test)) == 50
    assert splits.counts == {"rows": 50, "bad": 0, "repeated": 0, "cut": 0, "train": 40, "validation": 5, "test": 5}


def test_the_seed_alone_decides_the_split(local):
    described = local()
    assert load_splits(described) == load_splits(described)
    assert prompts(load_splits(described).test) != prompts(load_splits(local(seed=2)).test)


def test_fractions_are_shares_of_all_rows(local):
    splits = load_splits(local(test_fraction=0.5, validation_fraction=0.2))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [15, 10, 25]


def test_a_row_added_later_moves_few_others(local):
    before = prompts(load_splits(local()).test)
    after = prompts(load_splits(local(rows=[*ROWS, {"prompt": "new", "completion": "new"}])).test)
    assert len(before & after) >= 4


def test_repeated_rows_are_left_out_and_counted(local):
    splits = load_splits(local(rows=ROWS + ROWS[:7]))
    assert splits.counts["rows"] == 57
    assert splits.counts["repeated"] == 7
    assert len(splits.train + splits.validation + splits.test) == 50


def test_several_answers_to_one_prompt_stand_on_one_side(local):
    rows = [{"prompt": f"question {number // 3}", "completion": f"answer {number}"} for number in range(90)]
    splits = load_splits(local(rows=rows))
    assert not prompts(splits.train) & (prompts(splits.test) | prompts(splits.validation))


def test_rows_with_the_same_value_of_the_group_column_stand_on_one_side(local):
    rows = [{**row, "topic": number % 10} for number, row in enumerate(ROWS)]
    splits = load_splits(local(rows=rows, group="topic", test_fraction=0.2))
    groups = [{example.group for example in split} for split in (splits.train, splits.validation, splits.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_rows_with_the_same_prompt_stand_on_one_side_whatever_their_groups_and_system_messages(local):
    rows = [{"prompt": f"Say {i % 30}!", "completion": str(i), "topic": f"t{i}"} for i in range(60)]
    texts = [(("system", f"S{i}"), ("user", f"Say {i % 30}"), ("assistant", str(i))) for i in range(60)]
    chats = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in texts]
    for splits in (
        load_splits(local(rows=rows, group="topic", test_fraction=0.2)),
        load_splits(local(rows=chats, recipe="messages", test_fraction=0.2)),
    ):
        asked = [
            {normalise_text(question_of(one)) for one in split}
            for split in (splits.train, splits.validation, splits.test)
        ]
        assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
        assert sum(map(len, asked)) == 30


def test_a_group_too_large_for_a_held_out_split_is_trained_on(local):
    rows = [{**row, "topic": "big" if number < 30 else str(number)} for number, row in enumerate(ROWS)]
    for seed in range(5):
        assert '"big"' in {example.group for example in load_splits(local(rows=rows, group="topic", seed=seed)).train}


def test_too_few_rows_are_an_error(local):
    assert "too few to hold 1 out" in message_of(local(rows=ROWS[:1]))
    assert "too few to hold 1 out" in message_of(local(rows=ROWS[:2]))
    assert len(load_splits(local(rows=ROWS[:3])).train) == 1


def test_max_train_rows_cuts_only_the_training_rows_and_counts_them(local):
    all_rows = load_splits(local())
    ten, twenty = (load_splits(local(max_train_rows=limit)) for limit in (10, 20))
    assert [len(ten.train), len(ten.test), ten.counts["cut"]] == [10, 5, 30]
    assert ten.test == all_rows.test
    assert prompts(ten.train) < prompts(twenty.train) < prompts(all_rows.train)


def test_own_held_out_files_are_used_as_they_are(local):
    local(rows=ROWS[:4], path="test.jsonl")
    local(rows=ROWS[4:7], path="dev.jsonl")
    splits = load_splits(local(test="test.jsonl", validation="dev.jsonl"))
    assert [example.place for example in splits.test] == [f"test.jsonl:{line}" for line in range(1, 5)]
    assert prompts(splits.validation) == {"question 4", "question 5", "question 6"}
    assert [len(splits.train), splits.counts["repeated"]] == [50, 0]  # overlap.py judges what they share


def test_the_hub_splits_are_used(local, tmp_path):
    (tmp_path / "set").mkdir()
    local(path="set/train.jsonl")
    local(rows=ROWS[:5], path="set/test.jsonl")
    described = local(path="other.jsonl", test="test")
    described.source, described.path = Source.hub, "./set"
    splits = load_splits(described)
    assert splits.test[0].place == "./set[test]:1"
    assert splits.counts == {"rows": 55, "bad": 0, "repeated": 0, "cut": 0, "train": 45, "validation": 5, "test": 5}


def test_the_system_prompt_stands_before_every_prompt_that_has_none(local):
    described = local(system="Be brief")
    assert load_splits(described).train[0].prompt[0] == {"role": "system", "content": "Be brief"}
    roles = ("system", "user", "assistant")
    rows = [
        {"messages": [{"role": role, "content": f"{role} {number}"} for role in roles], "id": number}
        for number in range(9)
    ]
    first = load_splits(local(rows=rows, recipe="messages", group="id", system="Be brief")).train[0]
    assert first.prompt[0] == {"role": "system", "content": first.completion.replace("assistant", "system")}


def test_a_system_prompt_has_no_place_in_plain_text(local):
    rows = [{"text": f"text {number}"} for number in range(9)]
    assert load_splits(local(rows=rows, recipe="text")).train[0].prompt == []
    assert "data.system is set" in message_of(local(rows=rows, recipe="text", system="Be brief"))


def test_columns_are_mapped(local):
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in ROWS]
    mapped = load_splits(local(rows=rows, columns={"prompt": "q", "completion": "a"}))
    assert mapped.fingerprint == load_splits(local()).fingerprint


def test_a_missing_column_is_an_error_that_says_how_to_map_it(local):
    message = message_of(local(rows=[{"prompts": "x", "answer": "y"}]))
    assert message.startswith("mine.jsonl:1: there are no columns prompt and completion, which the recipe prompt_compl")
    assert "found: prompts, answer. Did you mean prompts? Name your columns with data.columns.prompt=prompts" in message
    assert "data.columns.completion=YOURS, or choose" in message
    message = message_of(local(rows=[{"name": "x", "parts": "y"}]))  # parts is not near enough to prompt to be meant
    assert "found: name, parts. Name your columns with data.columns.prompt=YOURS data.columns.comp" in message


def test_an_optional_column_that_is_mapped_must_be_there(local):
    rows = [{"instruction": "x", "output": "y"}]
    assert "no column context" in message_of(local(rows=rows, recipe="alpaca", columns={"input": "context"}))


def test_null_stands_for_an_optional_column_that_is_absent(local):
    rows = [{"instruction": f"say {number}", "input": None, "output": "y"} for number in range(9)]
    assert load_splits(local(rows=rows, recipe="alpaca")).counts["rows"] == 9


@pytest.mark.parametrize(
    ("value", "found"), [(None, "null"), (12, "the number 12"), (["x"], 'the list ["x"]'), (True, "true")]
)
def test_a_value_of_the_wrong_type_is_an_error_with_its_place(local, value, found):
    message = message_of(local(rows=[*ROWS, {"prompt": "x", "completion": value}]))
    assert message == f"mine.jsonl:51: completion is {found}, expected text (recipe prompt_completion)."


def test_what_a_recipe_refuses_is_an_error_with_its_place(local):
    assert message_of(local(rows=[{"messages": []}], recipe="messages")) == (
        "mine.jsonl:1: 0 messages, expected at least a user's and an assistant's (recipe messages)."
    )


def test_an_unknown_recipe_is_an_error_that_names_the_nearest(local):
    assert "data.recipe=mesages: there is no such recipe. Did you mean messages?" in message_of(local(recipe="mesages"))
    assert "There is: alpaca, messages" in message_of(local(recipe="os.path"))


def test_an_unknown_key_in_columns_is_an_error(local):
    assert "data.columns.promt=q: the recipe prompt_completion has no column promt. Did you mean prompt?" in message_of(
        local(columns={"promt": "q"})
    )


def test_an_unknown_group_column_is_an_error(local):
    assert "mine.jsonl:1: there is no column topics (data.group)" in message_of(local(group="topics"))


def test_the_digest_follows_the_contents_of_the_files(local):
    first = data_digest(local())
    assert first == data_digest(local())
    assert first != data_digest(local(rows=ROWS[1:]))
    local(rows=ROWS[:1], path="test.jsonl")
    assert data_digest(local(test="test.jsonl")) != data_digest(local(validation="test.jsonl"))
    with pytest.raises(UserError, match=r"no file mime\.jsonl"):
        data_digest(Data(source=Source.local, path="mime.jsonl"))


def test_other_sources_have_no_digest(usaddress):
    assert data_digest(usaddress) == ""
    assert data_digest(Data(source=Source.hub, path="owner/name", test="test")) == ""


def test_streets_of_the_embedded_addresses_stand_on_one_side(usaddress):
    splits = load_splits(usaddress)
    assert splits.counts == {
        "rows": 1513, "bad": 0, "repeated": 25, "cut": 1147, "train": 256, "validation": 45, "test": 40,
    }  # fmt: skip
    streets = [{example.group for example in split} for split in (splits.train, splits.validation, splits.test)]
    assert not streets[0] & streets[1]
    assert not streets[0] & streets[2]
    assert not streets[1] & streets[2]
    assert all(example.prompt[0]["role"] == "system" and json.loads(example.completion) for example in splits.train)


def test_reading_a_local_file_loads_neither_torch_nor_datasets(local):
    local()
    program = (
        "import sys; from finetune.config import schema; from finetune.data import splits; "
        "d = schema.Data(name='m', source=schema.Source.local, path='mine.jsonl', recipe='prompt_completion'); "
        "splits.load_splits(d); splits.data_digest(d); sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(CHECKOUT), "PATH": ""})
