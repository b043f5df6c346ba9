"""Fine-tune a language model and learn whether it was worth it: `python run.py --help`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from finetune.cli.compose import compose_config
from finetune.cli.main import run_job, start_program
from finetune.config.schema import Config, Stage, register_schema
from finetune.data.splits import Splits, load_splits
from finetune.machine.allowance import WHOLE_MACHINE, Allowance
from finetune.machine.libraries import import_trainer, silence_libraries
from finetune.machine.processes import agree, is_main_process
from finetune.reporting.console import RunConsole, show_complete_run
from finetune.runs.files import remove_folder, tell_full_disk
from finetune.runs.folder import complete_result, hold_run, move_aside, run_folder, run_labels
from finetune.runs.predictions import REPLIES
from finetune.runs.read import CompletedRun, write_result
from finetune.runs.stop import StopRequest, catch_signals
from finetune.sweeps.preload import NOTHING_LOADED, Loaded

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune.evaluation.answer_cache import AnswerCache
    from finetune.machine.device import Device
    from finetune.model.adapter import Weights
    from finetune.model.base import TrainedModel
    from finetune.planning.plan import RunPlan
    from finetune.planning.workload import PlannedRun
    from finetune.reporting.progress import TrainingProgress

register_schema()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> object:
    """One run; Hydra composes its configuration and calls this, once for each run of a sweep."""
    return run_job(run, config)


def run(
    config: Config,
    allowance: Allowance = WHOLE_MACHINE,
    loaded: Loaded = NOTHING_LOADED,
    report_progress: Callable[[str], None] = lambda note: None,
) -> "RunPlan | None":
    """Preview, plan, or train and evaluate; a run that is complete is only shown. A plan is returned, too.

    A sweep says what the run may use of the machine and what is loaded already, and is told how far the run is.
    """
    console = RunConsole(folder := run_folder(config), is_main_process())
    if config.stage is not Stage.train:
        look = preview_rows if config.stage is Stage.preview else plan_run
        return look(config, load_splits(config.data), set_up_machine(config, allowance), console)
    if aside := agree(lambda: move_aside(config, folder)):
        console.print(f"{folder}: what lay there is now {aside}")
    if result := agree(lambda: complete_result(config, folder)):
        show_complete_run(result, folder)
        return None
    with catch_signals(config, folder) as request, hold_run(config, folder), tell_full_disk(folder):
        splits = load_splits(config.data)  # before anything heavy is imported, so that a wrong file is told at once
        device = set_up_machine(config, allowance)
        train_and_evaluate(config, splits, device, console, loaded, report_progress, request)
    return None


def set_up_machine(config: Config, allowance: Allowance) -> "Device":
    """Import the libraries, and choose what the run computes on."""
    silence_libraries(config)
    from finetune.machine.device import choose_device, keep_to_one_gpu
    from finetune.machine.process_memory import set_up_memory

    spare_gpus = keep_to_one_gpu()
    import_trainer()
    set_up_memory()
    return choose_device(config.model, config.quantization, config.adapter, allowance, spare_gpus)


def preview_rows(config: Config, splits: Splits, device: "Device", console: RunConsole) -> None:
    """Data, tokens, checks, and a look at them; the model is not loaded."""
    from finetune.evaluation.prompts import choose_prompts
    from finetune.reporting.preview import show_preview
    from finetune.training.prepare import prepare_run

    prepared = prepare_run(config, splits, device, console.folder)
    choose_prompts(config, prepared)  # raises an error for what is wrong with them
    console.show_data(prepared)
    show_preview(prepared, console)


def plan_run(config: Config, splits: Splits, device: "Device", console: RunConsole) -> "RunPlan":
    """Steps, memory and time, and what to change where it will not fit; the model is not loaded."""
    console.show_start(device, config.quantization)
    from finetune.planning.plan import make_plan
    from finetune.planning.workload import plan_prompts
    from finetune.reporting.plan_table import show_plan
    from finetune.reporting.report import PhaseTimer
    from finetune.training.prepare import prepare_run

    clock = PhaseTimer()
    with clock.measure("prepare"):
        prepared = prepare_run(config, splits, device, console.folder)
        planned = plan_prompts(config, prepared, device)
    console.show_data(prepared)
    plan = make_plan(planned, clock.seconds["prepare"])
    show_plan(plan, console)
    return plan


def train_and_evaluate(
    config: Config,
    splits: Splits,
    device: "Device",
    console: RunConsole,
    loaded: Loaded,
    report_progress: Callable[[str], None],
    request: StopRequest,
) -> None:
    """Data, tokens, checks, model, training, answers to held-out prompts, report."""
    folder, is_main = console.folder, device.is_main_process
    console.show_start(device, config.quantization)
    from finetune.evaluation import answers, best_prompt, forgetting, lm_harness, scores
    from finetune.planning import plan, workload
    from finetune.reporting import progress, report, wandb
    from finetune.search.pruning import pruning_callbacks
    from finetune.training import preemption, prepare, trainer

    clock = report.PhaseTimer()
    with clock.measure("prepare"):
        prepared = prepare.prepare_run(config, splits, device, folder, loaded.rows)
        planned = workload.plan_prompts(config, prepared, device)
        tasks = lm_harness.load_harness_tasks(config.eval) if is_main else None
        console.show_data(prepared)
        plan.require_memory(planned)

    with clock.measure("load"):
        tuned, originals, base_answers = load_model(config, device, loaded, console)

    with wandb.start_tracking(config.tracking, run_labels(config), folder, is_main, console.print) as tracker:
        one_precision = trainer.mixed_precision(prepared.settings)  # of all answers
        watch = progress.TrainingProgress(console, tracker, report_progress)
        callbacks = [*pruning_callbacks(config.sweep, loaded.studies), preemption.StopCallback(request)]
        with clock.measure("train"), report.keep_history(folder, watch):
            train(config, tuned, base_answers.weights, planned, watch, callbacks)

        with clock.measure("evaluate"), one_precision, progress.progress_bar(console) as bar:
            answering = tuned, prepared.tokenizer, originals, base_answers
            chosen = best_prompt.choose_best_prompt(planned.search, planned.prompts, *answering, console.print)
            counter = progress.answer_counter(bar, chosen, report_progress)
            arms = answers.answer_prompts(chosen, *answering, counter, console.show_arm)
            general_arms = forgetting.answer_general_prompts(planned.general, *answering)
            harness = lm_harness.score_harness_tasks(tuned, prepared.tokenizer, tasks, originals, console.print)

        if is_main:
            with clock.measure("judge"):
                forgot = forgetting.describe_forgetting(planned.general, general_arms)
                evaluation = scores.describe_evaluation(chosen, arms, forgot, harness)
            result = report.collect_result(config, compose_config([]), tuned, prepared, watch, evaluation, clock)
            completed = CompletedRun(folder, result, scores.list_predictions(chosen, arms), watch.history)
            report.write_run_files(completed)
            tracker.finish(completed)
            write_result(completed)  # last, as it says that the run is complete
            remove_folder(folder / REPLIES)  # which predictions.jsonl holds
            console.show_result(result)


def train(
    config: Config,
    tuned: "TrainedModel",
    base: str,
    planned: "PlannedRun",
    watch: "TrainingProgress",
    callbacks: "list[TrainerCallback]",
) -> None:
    """Try whether the model can answer, train it, from the newest whole checkpoint on, and save what came out."""
    from finetune.evaluation.smoke_check import require_usable_model
    from finetune.training.checkpoints import TimedCheckpoints, find_checkpoint
    from finetune.training.trainer import Trainer, mixed_precision, run_training, save_trained

    console, prepared = watch.console, planned.prepared
    origin = {"data": prepared.splits.fingerprint, "base": base}
    callbacks = [watch, *callbacks, TimedCheckpoints(config.checkpoint, watch.counters)]
    limits = config.max_nonfinite_steps, console.print
    trainer = Trainer(tuned, prepared, callbacks, watch.counters, origin, *limits)
    console.print(f"  attention: {trainer.layout}")
    with mixed_precision(prepared.settings):
        require_usable_model(tuned, prepared.tokenizer, planned.prompts.examples[0].prompt)
    run_training(trainer, find_checkpoint(console.folder, console.print, origin))
    if console.logs:
        save_trained(tuned, prepared.tokenizer, console.folder)


def load_model(
    config: Config, device: "Device", loaded: Loaded, console: RunConsole
) -> "tuple[TrainedModel, Weights, AnswerCache]":
    """The base with what is trained on it, those of its weights that training changes, and the base's known answers."""
    from finetune.evaluation.answer_cache import AnswerCache
    from finetune.model.adapter import add_adapter, trained_base_weights
    from finetune.model.base import load_base

    base = load_base(config.model, config.quantization, device, loaded.bases)
    base_answers = AnswerCache.of(base, console.folder / REPLIES, console.print)
    tuned = add_adapter(base, config.adapter, config.seed)
    return tuned, trained_base_weights(tuned), base_answers


if __name__ == "__main__":
    start_program(main)
