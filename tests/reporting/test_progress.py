"""How far a run is, on its bar and for the sweep that it is a trial of."""

from types import SimpleNamespace

import pytest

from finetune.reporting.console import RunConsole
from finetune.reporting.progress import TrainingProgress, answer_counter, progress_bar
from finetune.reporting.wandb import TrackedRun


@pytest.fixture
def console(tmp_path):
    return RunConsole(tmp_path, is_main_process=True)


def test_answers_are_counted_by_arm(console):
    notes, bar = [], progress_bar(console)
    sets = {name: SimpleNamespace(examples=[0] * count) for name, count in (("zero_shot", 4), ("few_shot", 8))}
    prompts = SimpleNamespace(arms=lambda: sets)
    counter = answer_counter(bar, prompts, notes.append)
    counter("zero_shot", 4)
    counter("few_shot", 3)
    counter("few_shot", 2)
    assert notes == ["answering: zero shot 4/4", "answering: few shot 3/8", "answering: few shot 5/8"]
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("answering: zero shot", 4, 4),
        ("answering: few shot", 5, 8),
    ]


ARGS = SimpleNamespace(load_best_model_at_end=False, per_device_train_batch_size=8)


def step(watch, state, **logged):
    """One step of training, after which `logged` is logged."""
    control = SimpleNamespace(should_log=False, should_save=False, should_evaluate=False)
    watch.on_step_begin()
    state.global_step += 1
    watch.on_step_end(ARGS, state, control)
    entry = {"step": state.global_step, "epoch": 1.0, "tokens": 110, "loss_tokens": 55, **logged}
    state.log_history.append(entry)
    watch.on_log(ARGS, state, control)
    return control


def test_a_run_counts_on_from_its_checkpoint_and_says_how_far_it_is(console):
    notes = []
    watch = TrainingProgress(console, TrackedRun(), notes.append)
    watch.counters.seconds = 7.0
    earlier = {"step": 3, "epoch": 0.5, "tokens": 100, "loss_tokens": 50, "train_seconds": 7.0, "loss": 2.0}
    earlier["tokens_per_second"] = 14.0
    state = SimpleNamespace(global_step=3, max_steps=5, log_history=[earlier])
    watch.on_train_begin(ARGS, state, None)
    assert not step(watch, state, loss=1.5).should_log
    assert step(watch, state, eval_loss=1.25).should_log  # the last
    watch.on_train_end(ARGS, state, None)
    result = watch.result()
    assert (result.steps, result.tokens, result.loss_tokens, result.resumed_from_step) == (5, 110, 55, 3)
    assert (result.train_loss, result.validation_loss) == (1.5, 1.25) and result.seconds >= 7.0
    assert notes[0].startswith("step 4/5 loss 2.000 · 14 tokens/s") and notes[1].startswith("step 5/5 loss 1.500")
    assert "step 5/5: loss 1.500 · validation loss 1.250" in (console.folder / "log.txt").read_text()


def test_a_validation_loss_that_is_not_finite_ends_the_run_with_what_to_try(console):
    watch = TrainingProgress(console, TrackedRun(), lambda note: None)
    state = SimpleNamespace(global_step=0, max_steps=5, log_history=[])
    watch.on_train_begin(ARGS, state, None)
    with pytest.raises(FloatingPointError, match=r"The validation loss is nan at step 1: it diverged\. Try a lower"):
        step(watch, state, eval_loss=float("nan"))


def test_the_validation_loss_of_a_run_is_that_of_the_checkpoint_that_is_kept(console):
    watch = TrainingProgress(console, TrackedRun(), lambda note: None)
    state = SimpleNamespace(global_step=0, max_steps=5, log_history=[], best_metric=1.25)
    watch.on_train_begin(ARGS, state, None)
    for loss in (1.25, 1.75):
        step(watch, state, loss=1.0, eval_loss=loss)
    watch.on_train_end(SimpleNamespace(load_best_model_at_end=True), state, None)
    assert watch.result().validation_loss == 1.25
