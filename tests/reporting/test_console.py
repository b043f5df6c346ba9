"""What a run prints is in its log, too, and its end says what came out and what to do next."""

from dataclasses import replace

from support.run_folders import answers, write_run

from finetune.reporting.console import RunConsole, show_complete_run
from finetune.runs.read import read_run
from finetune.runs.result import HarnessScore


def test_what_is_printed_is_appended_to_the_log_and_read_as_no_markup(tmp_path, capsys):
    for line in ("[bold]first", "second"):
        RunConsole(tmp_path / "run", is_main_process=True).print(line, style="yellow")
    assert (tmp_path / "run/log.txt").read_text() == capsys.readouterr().out == "[bold]first\nsecond\n"


def test_only_the_main_process_prints_and_logs(tmp_path, capsys):
    RunConsole(tmp_path / "run", is_main_process=False).print("nothing")
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_a_complete_run_shows_scores_verdict_examples_and_cost_and_logs_nothing(tmp_path, capsys):
    folder = write_run(tmp_path / "run", tuned=["x" * 300, *answers(range(40), 40)[1:]])
    run = read_run(folder)
    show_complete_run(run.result, folder)
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "is complete: nothing to do" in words and "40 held-out test prompts" in words
    assert run.verdict in shown and "tuned - zero-shot" in words and "McNemar" not in words
    assert "Say 0" in words and "Say 2" in words and "Say 3" not in words and "x ..." in shown
    assert "Trained 40 steps, 800 tokens at 100 tokens/s; 10 s in all; peak memory 1.0 GiB." in shown
    assert f"In {folder}: report.html, adapter/" in shown and "Next: change a setting" in shown
    assert not (folder / "log.txt").exists()


def test_answers_that_were_cut_off_and_harness_scores_are_shown(tmp_path, capsys):
    folder = write_run(tmp_path / "run", tuned=answers(range(9), 9))
    result = read_run(folder).result
    evaluation = result.evaluation
    arms = evaluation.arms | {"tuned": replace(evaluation.arms["tuned"], unfinished_answers=3)}
    harness = {"arc": {"acc": HarnessScore(0.4, 0.1, 0.6, 0.2)}}
    show_complete_run(replace(result, evaluation=replace(evaluation, arms=arms, harness=harness)), folder)
    shown = capsys.readouterr().out
    assert "Answers cut off at eval.max_new_tokens=16: 3 of tuned." in shown
    assert "0.400 ± 0.100" in shown and "0.600 ± 0.200" in shown


def test_a_trial_of_a_search_shows_its_score_on_validation_prompts_alone(tmp_path, capsys):
    folder = write_run(tmp_path / "run", tuned=answers(range(20), 40), split="validation")
    show_complete_run(read_run(folder, "selection.json").result, folder)
    shown = capsys.readouterr().out
    assert "exact_match 0.500 [" in shown and "on 40 validation prompts" in shown and "Trained" not in shown
