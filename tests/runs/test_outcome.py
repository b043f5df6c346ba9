"""How a run ended is known afterwards, and decides whether the same command runs it again."""

import pytest
import torch
from support.run_folders import answers, write_run

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.folder import BusyError
from finetune.runs.outcome import (
    UNENDED,
    Pruned,
    RunState,
    conclude_run,
    run_to_outcome,
    settled_outcome,
    state_after_error,
)
from finetune.runs.result import RESULT, read_result

METRIC = "data.metrics=[exact_match]"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Pruned("worse than others"), "pruned"),
        (BusyError("another process"), "busy"),
        (UserError("wrong"), "refused"),
        (FloatingPointError("diverged"), "diverged"),
        (SystemExit(1), "exited"),
        (KeyboardInterrupt(), "killed"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA"), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            "out_of_memory",
        ),
        (ValueError("out of memory"), "failed"),
        (RuntimeError("something else"), "failed"),
    ],
)
def test_what_was_raised_says_how_a_run_ended(error, state):
    assert state_after_error(error) is RunState(state)


def test_a_complete_run_has_its_score_at_its_end_and_later(tmp_path):
    folder = write_run(tmp_path / "run", tuned=answers({0, 1, 2}, 4))
    config = compose_config([METRIC])
    ended = conclude_run(config, folder, RunState.complete, "", 12.0)
    assert (ended.state, ended.score, ended.metric, ended.seconds) == (RunState.complete, 0.75, "exact_match", 12.0)
    later = settled_outcome(config, folder)
    assert (later.score, later.seconds, later.known, ended.known) == (0.75, 10.0, True, False)


@pytest.mark.parametrize("state", sorted(set(RunState) - {RunState.complete, *UNENDED}, key=str))
def test_a_run_that_would_end_so_again_is_not_repeated(tmp_path, state):
    config = compose_config(["sweep.trial=3"])
    outcome = conclude_run(config, tmp_path, state, "a reason", 2.34)
    assert (outcome.state, outcome.score) == (state, None)
    if state is RunState.busy:
        assert not (tmp_path / RESULT).exists()
        return
    written = read_result(tmp_path / RESULT)
    assert (written.status, written.reason, written.seconds_in_all) == (state.value, "a reason", 2.3)
    assert written.config["seed"] == 42
    settled = settled_outcome(config, tmp_path)
    if state.value in ("pruned", "diverged", "out_of_memory"):
        assert (settled.state, settled.reason, settled.seconds, settled.known) == (state, "a reason", 2.3, True)
    else:
        assert settled is None
    assert settled_outcome(compose_config(["sweep.trial=3", "sweep.repeat_failures=true"]), tmp_path) is None


def test_what_a_search_pruned_is_run_by_others(tmp_path):
    conclude_run(compose_config(["sweep.trial=3"]), tmp_path, RunState.pruned, "others do better", 1.0)
    assert settled_outcome(compose_config([]), tmp_path) is None


def test_a_failure_does_not_replace_a_result(tmp_path):
    folder = write_run(tmp_path / "run", tuned=["0"])
    before = (folder / RESULT).read_text()
    conclude_run(compose_config([METRIC]), folder, RunState.failed, "late", 1.0)
    assert (folder / RESULT).read_text() == before


def test_the_reason_is_the_message_or_else_the_stack(capsys):
    def raise_(error):
        def run(_):
            raise error

        return run

    assert run_to_outcome(lambda _: None, None) == (RunState.complete, "")
    assert run_to_outcome(raise_(UserError("wrong")), None) == (RunState.refused, "wrong")
    assert capsys.readouterr().err == "Error: wrong\n"
    state, reason = run_to_outcome(raise_(KeyError("x")), None)
    assert state is RunState.failed and reason.startswith("Traceback") and "KeyError: 'x'" in reason
    assert "KeyError: 'x'" in capsys.readouterr().err
    assert run_to_outcome(raise_(MemoryError()), None) == (RunState.out_of_memory, "MemoryError")
    with pytest.raises(KeyboardInterrupt):
        run_to_outcome(raise_(KeyboardInterrupt()), None)
