"""result.json is written and read as one typed value; what is no such value is refused in a sentence."""

import json
from dataclasses import replace
from math import inf, isnan, nan

import pytest
from support.run_folders import answers, made_result, write_run

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.files import write_json
from finetune.runs.result import RESULT, FailedResult, Interval, read_result


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write_run(tmp_path / "run", tuned=answers({0, 1}, 3), metrics=["exact_match", "macro_f1"])
    result = read_result(folder / RESULT)
    config = compose_config(["data.metrics=[exact_match,macro_f1]"])
    assert result == made_result(config, result.evaluation, "run")
    write_json(tmp_path / "again.json", result)
    assert read_result(tmp_path / "again.json") == result


def test_numbers_that_json_does_not_have_come_back_as_what_they_were(tmp_path):
    result = read_result(write_run(tmp_path / "run", tuned=["0"]) / RESULT)
    result.evaluation.arms["tuned"].scores["perplexity"] = Interval(nan, -inf, inf)
    write_json(tmp_path / RESULT, result)
    json.loads((tmp_path / RESULT).read_text(), parse_constant=pytest.fail)
    again = read_result(tmp_path / RESULT).evaluation.tuned("perplexity")
    assert isnan(again.mean) and (again.low, again.high) == (-inf, inf)


def test_how_a_run_failed_is_read_too(tmp_path):
    failed = FailedResult("run", "diverged", "The training loss is nan", 3.5, {"seed": 42})
    write_json(tmp_path / RESULT, failed)
    assert read_result(tmp_path / RESULT) == failed
    assert read_result(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "it is damaged: Unterminated string"),
        (lambda text: "[]", "it is damaged"),
        (lambda text: text.replace('"metric"', '"measure"'), r"damaged: .*evaluation\.metric Field required"),
        (lambda text: text.replace('"steps": 40', '"steps": "many"'), r"damaged: .*training\.steps"),
        (lambda text: text.replace('"format": 4', '"format": 2'), "another version of this program wrote it"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_a_sentence_that_names_it(tmp_path, change, message):
    file = write_run(tmp_path / "run", tuned=["0"]) / RESULT
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=message) as error:
        read_result(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"format": 1}, "another version of this program wrote it"),
        (lambda content: {key: value for key, value in content.items() if key != "data"}, "it is damaged"),
    ],
)
def test_the_program_refuses_such_a_file_with_code_2_and_no_stack(program, tmp_path, change, message):
    named = [f"output_dir={tmp_path}", "name=old", "data.metrics=[exact_match]"]
    folder = write_run(tmp_path / "old", *named[:2], tuned=["0"])
    file = folder / RESULT
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    done = program(*named)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {file}: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_without_a_rival_has_no_verdict(tmp_path):
    result = read_result(write_run(tmp_path / "run", tuned=["0"], split="validation") / "selection.json")
    assert result.evaluation.verdict is None and result.evaluation.split == "validation"
    assert result.evaluation.tuned() == result.evaluation.tuned("exact_match")
    assert replace(result, seed=1) != result
