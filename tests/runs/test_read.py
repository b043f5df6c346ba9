"""Folders of runs are found however they are named, and a file that is damaged is named."""

import pytest
from support.run_folders import answers, write_run

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState, conclude_run
from finetune.runs.read import find_runs, read_run, run_folders
from finetune.runs.result import SELECTION
from finetune.runs.sweep_record import REPETITIONS, open_sweep_record


@pytest.fixture
def outputs(tmp_path):
    """Two complete runs, one that failed, one that was begun, and a folder of something else."""
    for name, right in (("first", 3), ("second", 1)):
        write_run(tmp_path / name, tuned=answers(range(right), 4))
    conclude_run(compose_config([]), tmp_path / "third", RunState.failed, "broken", 1.0)
    (tmp_path / "fourth" / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize("arguments", [["."], ["first", "second", "third", "fourth"], ["f*", "*d"], [".", "first"]])
def test_runs_are_found_by_folder_folder_of_runs_and_glob_once_each(outputs, arguments):
    complete, unfinished = find_runs([str(outputs / argument) for argument in arguments])
    assert {run.name for run in complete} == {"first", "second"} and len(complete) == 2
    assert sorted(folder.name for folder in unfinished) == ["fourth", "third"]


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("nowhere", "does not exist"),
        ("first/result.json", "is no folder"),
        ("notes", "holds no run"),
        ("n*", "holds no run"),
    ],
)
def test_an_argument_without_a_run_is_told_why(outputs, argument, why):
    with pytest.raises(UserError, match=rf"{why}\. Name folders of runs"):
        find_runs([str(outputs / argument)])


def test_no_complete_run_among_them_is_an_error(outputs):
    with pytest.raises(UserError, match=r"third: no run is complete\. The command that started one finishes it"):
        find_runs([str(outputs / "third")])


@pytest.mark.parametrize("file", ["predictions.jsonl", "history.jsonl"])
def test_a_damaged_file_is_named_by_its_run(outputs, file):
    (outputs / "first" / file).write_text('{"place": ')
    with pytest.raises(UserError, match="first: a file of the run cannot be read"):
        read_run(outputs / "first")


def test_a_sweep_stands_for_its_trials_but_not_for_its_repetitions(tmp_path):
    record = open_sweep_record(str(tmp_path), "ranks", [])
    for number, split in ((0, "validation"), (1, "test"), (REPETITIONS, "test")):
        folder = write_run(tmp_path / f"run{number}", tuned=["0"], split=split)
        overrides = ["sweep.on_validation=true"] if split == "validation" else []
        record.begin(number, overrides, folder, RunState.running)
        record.end(number, Outcome(RunState.complete))
    complete, _ = find_runs([str(record.folder)])
    splits = [(run.name, run.result.evaluation.split) for run in complete]
    assert splits == [("run0", "validation"), ("run1", "test")]
    assert [folder.name for folder in run_folders(str(record.folder))] == ["ranks", "run0", "run1", f"run{REPETITIONS}"]


def test_a_run_is_shown_by_its_own_words(outputs):
    first, second = read_run(outputs / "first"), read_run(outputs / "second")
    assert first.verdict == first.result.evaluation.verdict.sentence and first.tuned("exact_match").mean == 0.75
    assert first.pairing_key(None) == second.pairing_key(None)
    assert read_run(write_run(outputs / "trial", tuned=["0"], split="validation"), SELECTION).verdict == ""


def test_perplexities_are_comparable_where_references_have_the_same_tokens(tmp_path):
    folders = [
        write_run(tmp_path / str(tokens), tuned=["?"] * 2, metrics=["perplexity"], likelihoods=[(1.0, tokens)] * 2)
        for tokens in (4, 5)
    ]
    four, five = map(read_run, folders)
    assert four.pairing_key(None) == four.pairing_key("perplexity") != five.pairing_key("perplexity")
    assert four.pairing_key("chrf") == five.pairing_key("chrf")
