"""Fine-tune a language model and learn whether it was worth it: `python run.py --help`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from finetune.cli import main as command
from finetune.config import schema
from finetune.config.choices import Stage
from finetune.config.schema import Config
from finetune.data import splits as data
from finetune.machine import libraries
from finetune.reporting.console import Screen, show_complete
from finetune.runs import folder as checkpoint
from finetune.runs import sweep_record as trials

schema.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> trials.Outcome | None:
    """One run; Hydra composes its configuration and calls this, once for each run of a sweep."""
    return command.run_job(run, config)


def run(config: Config) -> None:
    """Preview, plan, or train and judge; a run that is complete is only shown."""
    folder = checkpoint.folder(config)
    if config.stage is Stage.preview:
        preview_rows(config, folder)
    elif config.stage is Stage.plan:
        plan_run(config, folder)
    elif result := checkpoint.result(config, folder):
        show_complete(result, folder)
    else:
        train_and_judge(config, folder)


def preview_rows(config: Config, folder: Path) -> None:
    """Data, tokens, checks, and a look at them; the model is not loaded."""
    splits = data.load(config.data)
    libraries.hush(config)
    from finetune.evaluation import answers as evaluate
    from finetune.machine import device
    from finetune.reporting import preview
    from finetune.training import prepare

    machine = device.choose(config.model, config.quantization, config.adapter)
    screen = Screen(folder, speaks=machine.is_main_process)
    prepared = prepare.prepare(config, splits, machine, folder)
    evaluate.choose_prompts(config, prepared)  # is told what is wrong with them
    screen.show_data(prepared)
    preview.show(prepared, screen)


def plan_run(config: Config, folder: Path) -> None:
    """Steps, memory and time, and what to change where it will not fit; the model is not loaded."""
    splits = data.load(config.data)
    libraries.hush(config)
    from finetune.machine import device
    from finetune.planning import plan
    from finetune.reporting import report
    from finetune.training import prepare

    device.set_up_memory()
    clock = report.Clock()
    machine = device.choose(config.model, config.quantization, config.adapter)
    screen = Screen(folder, speaks=machine.is_main_process)
    screen.show_start(machine, None)
    with clock.measure("prepare"):
        prepared = prepare.prepare(config, splits, machine, folder)
    screen.show_data(prepared)
    plan.show(plan.make(config, prepared, machine, clock.seconds["prepare"]), screen)


def train_and_judge(config: Config, folder: Path) -> None:
    """Data, tokens, checks, model, training, answers to held-out prompts, report."""
    splits = data.load(config.data)  # before anything heavy is imported: what is wrong with a file is told at once
    libraries.hush(config)
    from finetune.machine import device
    from finetune.planning import plan
    from finetune.reporting import report
    from finetune.training import prepare

    device.set_up_memory()
    clock = report.Clock()
    machine = device.choose(config.model, config.quantization, config.adapter)
    screen = Screen(folder, speaks=machine.is_main_process)
    screen.show_start(machine, checkpoint.newest(folder))
    from finetune.evaluation import answers as evaluate
    from finetune.evaluation import forgetting as retention
    from finetune.evaluation import lm_harness as harness
    from finetune.evaluation import verdict as judge
    from finetune.model import base as model
    from finetune.reporting import progress
    from finetune.reporting import wandb as tracking
    from finetune.search import pruning as prune
    from finetune.training import trainer as train

    with clock.measure("prepare"):
        prepared = prepare.prepare(config, splits, machine, folder)
        prompts = evaluate.choose_prompts(config, prepared)
        general = retention.choose_prompts(config, prepared)
        tasks = harness.choose_tasks(config.eval) if machine.is_main_process else None
        screen.show_data(prepared)
        plan.require_room(config, prepared, machine)

    with clock.measure("load"):
        base = model.load_base(config.model, config.quantization, machine)
        tuned = model.add_adapter(base, config.adapter, config.seed)
        originals = model.trained_base_weights(tuned)

    with (
        checkpoint.hold(config, folder, machine.is_main_process),
        tracking.start(
            config.tracking,
            **checkpoint.labels(config),
            folder=folder,
            is_main_process=machine.is_main_process,
            say=screen.say,
        ) as tracker,
    ):
        watch = progress.Watch(screen, tracker)
        with clock.measure("train"), report.leave_history(folder, watch):
            trainer = train.Trainer(tuned, prepared, [watch, *prune.callbacks(config.sweep)])
            screen.say(f"  attention: {trainer.layout}")
            train.train(trainer, checkpoint.newest(folder))
            if machine.is_main_process:
                train.save(tuned, prepared.tokenizer, folder)

        with clock.measure("evaluate"), progress.bar(screen) as bar:
            counter = progress.counter(bar, prompts)
            arms = evaluate.answer(tuned, prepared.tokenizer, prompts, originals, counter, screen.show_arm)
            kept = retention.answer(tuned, prepared.tokenizer, general, originals)

        if machine.is_main_process:
            with clock.measure("evaluate"):
                scores = harness.answer(tuned, prepared.tokenizer, tasks, config.eval, originals, screen.say)
            with clock.measure("judge"):
                evaluation = judge.describe(prompts, arms, retention.describe(general, kept)) | {"harness": scores}
            result = report.collect(config, folder, tuned, prepared, watch, evaluation, clock)
            report.write(folder, result, judge.predictions(prompts, arms), watch.history)
            tracker.finish(result, folder)
            screen.show_result(result)


if __name__ == "__main__":
    command.start(main)
