"""The page of a run shows the verdict first, then what it rests on."""

from support.pages import drawn
from support.run_folders import answers, write_run

from finetune.reporting.run_page import write_run_page
from finetune.runs.read import read_run


def test_a_runs_page_shows_the_verdict_first_and_hostile_answers_as_text(browser, tmp_path):
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    folder = write_run(
        tmp_path / "run<b>", "adapter.r=4", tuned=[hostile, *answers(range(40), 40)[1:]], base=["0"] * 40
    )
    run = read_run(folder)
    write_run_page(run)
    evaluation = run.result.evaluation
    browser.set_viewport_size({"width": 390, "height": 800})
    assert drawn(browser, folder / "report.html") == []
    assert browser.inner_text(".verdict") == evaluation.verdict.sentence
    assert browser.title() == "run<b>" and hostile in browser.inner_text("body")
    assert f"{evaluation.tuned().mean:.3f} [" in browser.inner_text("table")
    assert "adapter.r\t4\t16" in browser.inner_text("body")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.inner_text("pre .context") == "Say <b>9</b>" and browser.inner_text("pre .loss") == "9<|im_end|>"
    assert browser.inner_text("h3").startswith("Lost: 1 of 1")
