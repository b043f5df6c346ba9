"""Fine-tune a language model and learn whether it was worth it: `python run.py --help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from finetune.cli.compose import compose_config
from finetune.cli.main import run_job, start_program
from finetune.config.schema import Config, Stage, register_schema
from finetune.data.splits import load_splits
from finetune.machine.libraries import silence_libraries
from finetune.reporting.console import RunConsole, show_complete_run
from finetune.runs.folder import complete_result, hold_run, newest_checkpoint, run_folder, run_labels
from finetune.runs.outcome import Outcome

register_schema()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> Outcome | None:
    """One run; Hydra composes its configuration and calls this, once for each run of a sweep."""
    return run_job(run, config)


def run(config: Config) -> None:
    """Preview, plan, or train and judge; a run that is complete is only shown."""
    folder = run_folder(config)
    if config.stage is Stage.preview:
        preview_rows(config, folder)
    elif config.stage is Stage.plan:
        plan_run(config, folder)
    elif result := complete_result(config, folder):
        show_complete_run(result, folder)
    else:
        train_and_judge(config, folder)


def preview_rows(config: Config, folder: Path) -> None:
    """Data, tokens, checks, and a look at them; the model is not loaded."""
    splits = load_splits(config.data)
    silence_libraries(config)
    from finetune.evaluation.prompts import choose_prompts
    from finetune.machine.device import choose_device
    from finetune.reporting.preview import show_preview
    from finetune.training.prepare import prepare_run

    machine = choose_device(config.model, config.quantization, config.adapter)
    screen = RunConsole(folder, speaks=machine.is_main_process)
    prepared = prepare_run(config, splits, machine, folder)
    choose_prompts(config, prepared)  # is told what is wrong with them
    screen.show_data(prepared)
    show_preview(prepared, screen)


def plan_run(config: Config, folder: Path) -> None:
    """Steps, memory and time, and what to change where it will not fit; the model is not loaded."""
    splits = load_splits(config.data)
    silence_libraries(config)
    from finetune.machine.device import choose_device
    from finetune.machine.process_memory import set_up_memory
    from finetune.planning.plan import make_plan
    from finetune.reporting.plan_table import show_plan
    from finetune.reporting.report import PhaseTimer
    from finetune.training.prepare import prepare_run

    set_up_memory()
    clock = PhaseTimer()
    machine = choose_device(config.model, config.quantization, config.adapter)
    screen = RunConsole(folder, speaks=machine.is_main_process)
    screen.show_start(machine, None)
    with clock.measure("prepare"):
        prepared = prepare_run(config, splits, machine, folder)
    screen.show_data(prepared)
    show_plan(make_plan(config, prepared, machine, clock.seconds["prepare"]), screen)


def train_and_judge(config: Config, folder: Path) -> None:
    """Data, tokens, checks, model, training, answers to held-out prompts, report."""
    splits = load_splits(config.data)  # before anything heavy is imported: what is wrong with a file is told at once
    silence_libraries(config)
    from finetune.machine.device import choose_device
    from finetune.machine.process_memory import set_up_memory
    from finetune.planning.plan import require_memory
    from finetune.reporting.report import PhaseTimer, collect_result, keep_history, write_run_files
    from finetune.training.prepare import prepare_run

    set_up_memory()
    clock = PhaseTimer()
    machine = choose_device(config.model, config.quantization, config.adapter)
    screen = RunConsole(folder, speaks=machine.is_main_process)
    screen.show_start(machine, newest_checkpoint(folder))
    from finetune.evaluation.answers import answer_prompts
    from finetune.evaluation.forgetting import answer_general_prompts, choose_general_prompts, describe_forgetting
    from finetune.evaluation.lm_harness import load_harness_tasks, score_harness_tasks
    from finetune.evaluation.prompts import choose_prompts
    from finetune.evaluation.verdict import describe_evaluation, list_predictions
    from finetune.model.adapter import add_adapter, trained_base_weights
    from finetune.model.base import load_base
    from finetune.reporting.progress import TrainingProgress, answer_counter, progress_bar
    from finetune.reporting.wandb import start_tracking
    from finetune.search.pruning import pruning_callbacks
    from finetune.training.trainer import Trainer, run_training, save_trained

    with clock.measure("prepare"):
        prepared = prepare_run(config, splits, machine, folder)
        prompts = choose_prompts(config, prepared)
        general = choose_general_prompts(config, prepared)
        tasks = load_harness_tasks(config.eval) if machine.is_main_process else None
        screen.show_data(prepared)
        require_memory(config, prepared, machine)

    with clock.measure("load"):
        base = load_base(config.model, config.quantization, machine)
        tuned = add_adapter(base, config.adapter, config.seed)
        originals = trained_base_weights(tuned)

    with (
        hold_run(config, folder, machine.is_main_process),
        start_tracking(
            config.tracking,
            **run_labels(config),
            folder=folder,
            is_main_process=machine.is_main_process,
            say=screen.say,
        ) as tracker,
    ):
        watch = TrainingProgress(screen, tracker)
        with clock.measure("train"), keep_history(folder, watch):
            trainer = Trainer(tuned, prepared, [watch, *pruning_callbacks(config.sweep)])
            screen.say(f"  attention: {trainer.layout}")
            run_training(trainer, newest_checkpoint(folder))
            if machine.is_main_process:
                save_trained(tuned, prepared.tokenizer, folder)

        with clock.measure("evaluate"), progress_bar(screen) as bar:
            counter = answer_counter(bar, prompts)
            arms = answer_prompts(tuned, prepared.tokenizer, prompts, originals, counter, screen.show_arm)
            kept = answer_general_prompts(tuned, prepared.tokenizer, general, originals)

        if machine.is_main_process:
            with clock.measure("evaluate"):
                scores = score_harness_tasks(tuned, prepared.tokenizer, tasks, config.eval, originals, screen.say)
            with clock.measure("judge"):
                evaluation = describe_evaluation(prompts, arms, describe_forgetting(general, kept)) | {
                    "harness": scores
                }
            result = collect_result(config, compose_config([]), folder, tuned, prepared, watch, evaluation, clock)
            write_run_files(folder, result, list_predictions(prompts, arms), watch.history)
            tracker.finish(result, folder)
            screen.show_result(result)


if __name__ == "__main__":
    start_program(main)
