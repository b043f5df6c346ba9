"""The page of a comparison holds ranking, curves and all answers, and needs no network."""

import json

import pytest
from support.comparisons import compare, write_three_runs
from support.pages import drawn

from finetune.comparison.compare import compare_runs
from finetune.comparison.page import render_comparisons, write_comparison_page
from finetune.runs.read import find_runs


@pytest.fixture
def three(tmp_path):
    return write_three_runs(tmp_path)


def test_the_page_shows_groups_curves_and_answers_without_errors_and_is_small(three, browser, tmp_path):
    file = tmp_path / "comparison.html"
    assert compare(three, "--html", file).returncode == 0
    assert drawn(browser, file) == [] and file.stat().st_size < 5_000_000
    rows = [row.inner_text().split() for row in browser.query_selector_all("tbody")[0].query_selector_all("tr")]
    assert [row[:2] for row in rows] == [["a", "first"], ["a", "second"], ["b", "worse"]]
    assert browser.inner_text(".count") == "34 of 60 prompts"
    browser.fill(".search", "Say 44")
    assert browser.inner_text(".count") == "1 of 60 prompts" and "first 1.00" in browser.inner_text(".example")
    assert browser.evaluate("document.querySelectorAll('.figure .main-svg').length") > 3


def test_the_page_names_what_is_left_out_and_holds_every_answer_of_every_run(three, tmp_path):
    comparisons = compare_runs(find_runs([str(three)])[0])
    write_comparison_page(tmp_path / "page.html", comparisons, [three / "begun"])
    page = (tmp_path / "page.html").read_text()
    assert "<title>Comparison of 3 runs</title>" in page and "Left out, as not complete: begun." in page
    data = json.loads(page.split('id="answers-0">')[1].split("</script>")[0])
    assert data["runs"] == ["first", "second", "worse"] and len(data["rows"]) == 60
    assert data["rows"][0]["spread"] == 1 and data["rows"][-1]["spread"] == 0
    row = next(row for row in data["rows"] if row["prompt"] == "Say 2")
    assert (row["reference"], row["scores"], row["answers"]) == ("2", [1.0, 0.0, 1.0], ["2", "no", "2"])


def test_a_sweeps_page_shows_the_curves_of_all_trials_once(three):
    comparisons = compare_runs(find_runs([str(three)])[0])
    own, given = render_comparisons(comparisons), render_comparisons(comparisons, {"trial 9": [{"step": 1, "loss": 2}]})
    assert "first training" in own and "trial 9" not in own and "first training" not in given
    assert given.count("Loss by tokens") == 1
