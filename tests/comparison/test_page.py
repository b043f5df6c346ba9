"""The page of a comparison holds ranking, curves and all answers, and needs no network."""

import pytest
from support.comparisons import compare, write_three_runs
from support.pages import drawn


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
