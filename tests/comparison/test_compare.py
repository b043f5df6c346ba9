"""Runs are ranked, and only those are told apart that differ beyond doubt."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.pages import drawn
from support.run_folders import answers, leave_run

from finetune.comparison.compare import compare_runs
from finetune.comparison.pairwise import compact_letters, compare_pairs, correct_holm, setting_importance
from finetune.config.settings import changed_settings
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.reporting.run_page import write_run_page
from finetune.runs.read import find_runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def three(tmp_path):
    """Two seeds of a setting and a setting that is clearly worse, on the same 60 prompts."""
    leave_run(tmp_path / "first", "seed=1", tuned=answers(range(45), 60))
    leave_run(tmp_path / "second", "seed=2", tuned=answers(range(3, 46), 60))
    leave_run(tmp_path / "worse", "adapter.r=2", tuned=answers(range(15), 60))
    return tmp_path


def compared(*arguments):
    command = [sys.executable, "-m", "finetune", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env={"COLUMNS": "200"})


def test_two_seeds_are_in_one_group_and_the_worse_setting_is_below(three):
    [comparison] = compare_runs(find_runs([str(three)])[0])
    assert [run.name for run in comparison.runs] == ["first", "second", "worse"]
    assert comparison.groups == ["a", "a", "b"]
    assert comparison.to_best[2].mean == pytest.approx(-0.5) and comparison.to_best[2].high < 0
    assert comparison.settings == [{"adapter.r": r, "seed": seed} for r, seed in ((16, 1), (16, 2), (2, 42))]


def test_the_program_shows_ranking_correction_settings_cost_verdicts_and_disagreements(three):
    done = compared(three)
    assert done.returncode == 0 and done.stderr == ""
    words = " ".join(done.stdout.split())
    assert done.stdout.index("first") < done.stdout.index("second") < done.stdout.index("worse")
    for shown in ("0.750 [", "Holm", "3 paired tests", "adapter.r=2 seed=42", "1.00 GiB", "800", "10", "Tuning beats"):
        assert shown in words
    assert "differ on 34 prompts" in words and "Say 0" in words


def test_the_groups_letters_are_those_of_a_published_example():
    # Piepho 2004, section 2: treatments 1 and 5, 1 and 7, 1 and 8, 2 and 4, 2 and 5, 3 and 5 differ, of eight.
    apart = {(1, 7), (1, 8), (2, 4), (2, 5), (3, 5)}
    found = compact_letters(8, lambda i, j: (i + 1, j + 1) in apart)
    for i in range(8):
        for j in range(i + 1, 8):
            assert bool(set(found[i]) & set(found[j])) == ((i + 1, j + 1) not in apart)


def test_the_correction_is_holms():
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_holm([0.5, 0.9]) == [1.0, 1.0]
    assert correct_holm([]) == []


def test_many_equal_runs_are_rarely_told_apart():
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(20):
        runs = [
            [{"reference": "", "tuned": {"scores": {"exact_match": float(x)}}} for x in draw.random(50) < 0.5]
            for _ in range(6)
        ]
        p = [found.p for found in compare_pairs(runs, "exact_match", 0).values()]
        wrong += min(correct_holm(p)) <= 0.05
    assert wrong <= 4  # 1 is expected; uncorrected it would be about 8


def test_runs_on_other_prompts_are_listed_apart_and_never_paired(three):
    leave_run(three / "elsewhere", tuned=answers(range(60), 60), system="Other.")
    found = compare_runs(find_runs([str(three)])[0])
    assert [[run.name for run in one.runs] for one in found] == [["first", "second", "worse"], ["elsewhere"]]
    done = compared(three)
    assert "2 different sets of prompts" in done.stdout and "elsewhere" in done.stdout


def test_unfinished_runs_are_named_counted_and_left_out(three):
    for name in ("begun", "other"):
        (three / name / "checkpoints").mkdir(parents=True)
    (three / "no_run").mkdir()
    done = compared(three)
    assert "Left out, as not complete: 2 runs (begun, other)." in done.stdout


def test_runs_are_found_by_folder_folder_of_runs_and_glob_once_each(three):
    runs, _ = find_runs([str(three / "first"), str(three), str(three / "w*")])
    assert [run.name for run in runs] == ["first", "second", "worse"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["README.md"], "README.md: is no folder"),
        (["conf"], "conf: holds no run"),
        ([], "the following arguments are required"),
        (["conf", "--metric"], "expected one argument"),
    ],
)
def test_a_mistake_is_told_without_a_stack(arguments, message):
    done = compared(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_metric_that_a_run_was_not_scored_by_is_named(three):
    runs, _ = find_runs([str(three)])
    with pytest.raises(UserError, match=r"--metric chrf: .* was not scored by it, but by exact_match"):
        compare_runs(runs, "chrf")


def test_a_broken_run_is_named(three):
    (three / "first" / "predictions.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"first: a file of the run cannot be read"):
        find_runs([str(three)])


@pytest.mark.parametrize("metric", ["macro_f1", "perplexity"])
def test_a_metric_of_the_whole_set_is_compared_too(tmp_path, metric):
    likelihoods = {"good": [(1.0 + i % 3, 4) for i in range(40)], "bad": [(6.0 + i % 4, 4) for i in range(40)]}
    for name, right in (("good", range(38)), ("bad", range(5))):
        leave_run(tmp_path / name, tuned=answers(right, 40), metrics=[metric], likelihoods=likelihoods[name])
    [comparison] = compare_runs(find_runs([str(tmp_path)])[0])
    assert [run.name for run in comparison.runs] == ["good", "bad"] and comparison.groups == ["a", "b"]
    better = 1 if HIGHER_IS_BETTER[metric] else -1
    assert better * comparison.to_best[1].mean < 0


def test_perplexities_of_other_tokens_are_never_paired(tmp_path):
    for name, tokens in (("one_tokenizer", 4), ("another", 5)):
        leave_run(tmp_path / name, tuned=answers([], 9), metrics=["perplexity"], likelihoods=[(2.0, tokens)] * 9)
    comparisons = compare_runs(find_runs([str(tmp_path)])[0])
    assert sorted(run.name for found in comparisons for run in found.runs) == ["another", "one_tokenizer"]
    assert len(comparisons) == 2


def test_only_what_differs_from_the_defaults_is_changed(tmp_path):
    from finetune.cli.compose import compose_config
    from finetune.config.settings import to_plain

    config = to_plain(compose_config(["adapter.r=4", "trainer.weight_decay=0.1", "tracking=none", "name=x"]))
    assert changed_settings(config) == {"adapter.r": (4, 16), "trainer.weight_decay": (0.1, None)}
    assert changed_settings(to_plain(compose_config([]))) == {}


def test_the_page_shows_groups_curves_and_answers_without_errors_and_is_small(three, browser, tmp_path):
    file = tmp_path / "comparison.html"
    assert compared(three, "--html", file).returncode == 0
    assert drawn(browser, file) == [] and file.stat().st_size < 5_000_000
    rows = [row.inner_text().split() for row in browser.query_selector_all("tbody")[0].query_selector_all("tr")]
    assert [row[:2] for row in rows] == [["a", "first"], ["a", "second"], ["b", "worse"]]
    assert browser.inner_text(".count") == "34 of 60 prompts"
    browser.fill(".search", "Say 44")
    assert browser.inner_text(".count") == "1 of 60 prompts" and "first 1.00" in browser.inner_text(".example")
    assert browser.evaluate("document.querySelectorAll('.figure .main-svg').length") > 3


def test_a_runs_page_shows_the_verdict_first_and_hostile_answers_as_text(browser, tmp_path):
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    folder = leave_run(
        tmp_path / "run<b>", "adapter.r=4", tuned=[hostile, *answers(range(40), 40)[1:]], base=["0"] * 40
    )
    write_run_page(folder)
    result = json.loads((folder / "result.json").read_text())
    browser.set_viewport_size({"width": 390, "height": 800})
    assert drawn(browser, folder / "report.html") == []
    assert browser.inner_text(".verdict") == result["evaluation"]["verdict"]["sentence"]
    assert browser.title() == "run<b>" and hostile in browser.inner_text("body")
    assert f"{result['evaluation']['arms']['tuned']['exact_match']['mean']:.3f} [" in browser.inner_text("table")
    assert "adapter.r\t4\t16" in browser.inner_text("body")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.inner_text("pre .context") == "Say <b>9</b>" and browser.inner_text("pre .loss") == "9<|im_end|>"
    assert browser.inner_text("h3").startswith("Lost: 1 of 1")


def test_a_setting_that_decides_the_score_is_found_important():
    rates, ranks = [1e-5, 1e-4, 1e-3, 1e-5, 1e-4, 1e-3, 1e-5, 1e-3], [4, 8, 4, 8, 4, 8, 8, 4]
    found, why_not = setting_importance({"trainer.learning_rate": rates, "adapter.r": ranks}, [r * 500 for r in rates])
    assert why_not == "" and next(iter(found)) == "trainer.learning_rate" and found["trainer.learning_rate"] > 0.8
    assert "from 5 runs on" in setting_importance({"seed": [1, 2]}, [0.1, 0.2])[1]
