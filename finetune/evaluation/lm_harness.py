"""What do tasks of EleutherAI's lm-evaluation-harness say of the base and of the tuned model?"""

import io
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PreTrainedTokenizerBase

from finetune.config.harness_tasks import is_task_path
from finetune.config.schema import Eval
from finetune.errors import UserError, did_you_mean
from finetune.model.adapter import Weights, as_base_model
from finetune.model.base import TrainedModel
from finetune.runs.result import HarnessScore

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

BATCH_SIZE = 8
RESAMPLES = 1000  # for the standard errors that no formula gives; the harness's own 100,000 take minutes
UNREADABLE = (OSError, KeyError, ValueError, TypeError, yaml.YAMLError)  # by a task that cannot be read, or its data
Scores = dict[str, tuple[float | None, float | None]]  # by metric the value and its standard error


@dataclass(frozen=True)
class HarnessTasks:
    """The harness's manager of tasks, what is to be run, by name or file, and how."""

    manager: "TaskManager"
    chosen: list[str]
    settings: Eval


def load_harness_tasks(settings: Eval) -> HarnessTasks | None:
    """The tasks of `eval.harness_tasks`, their data fetched, or None; raises UserError for what cannot be loaded."""
    if not settings.harness_tasks:
        return None
    from lm_eval.tasks import TaskManager

    paths = [str(Path(task).expanduser()) for task in settings.harness_tasks if is_task_path(task)]
    names = [task for task in settings.harness_tasks if not is_task_path(task)]
    folders = [path for path in paths if Path(path).is_dir()]
    manager = TaskManager(include_path=folders, include_defaults=bool(names))
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f"eval.harness_tasks: the harness knows no task {name}.{did_you_mean(name, manager.all_tasks)} "
                "Give a task of your own as a file: eval.harness_tasks=[./mine.yaml]."
            )
    inside = [TaskManager(include_path=folder, include_defaults=False).all_subtasks for folder in folders]
    chosen = [*names, *(path for path in paths if path not in folders), *chain.from_iterable(inside)]
    for task in chosen:
        try:
            manager.load([task])
        except UNREADABLE as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise UserError(
                f"eval.harness_tasks: {task} could not be loaded: {reason}. Check the task's file, its data (relative "
                "paths count from the working folder) and, for data of the hub, the network."
            ) from error
    return HarnessTasks(manager, chosen, settings)


def score_harness_tasks(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: HarnessTasks | None,
    originals: Weights,
    log: Callable[[str], object],
) -> dict[str, dict[str, HarnessScore]]:
    """By task and metric what the base and the tuned model score; empty without tasks. One process does all of it."""
    if tasks is None:
        return {}
    scores = {}
    for arm in ("base", "tuned"):
        started = time.perf_counter()
        with as_base_model(model, originals) if arm == "base" else nullcontext():
            scores[arm] = _evaluate(model, tokenizer, tasks)
        log(f"  lm-evaluation-harness: {arm} model scored in {time.perf_counter() - started:.0f} s")
    return {
        task: {metric: HarnessScore(*base, *scores["tuned"][task][metric]) for metric, base in metrics.items()}
        for task, metrics in scores["base"].items()
    }


def _evaluate(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: HarnessTasks) -> dict[str, Scores]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # its progress bars
    # The harness ties the model's weights, which breaks embeddings that an adapter trains.
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        with quiet:
            results = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=tasks.settings.batch_size or BATCH_SIZE),
                tasks=tasks.chosen,
                task_manager=tasks.manager,
                limit=tasks.settings.harness_limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
            )
    finally:
        del vars(model)["tie_weights"]
    return {name: _scores(values) for name, values in (results["results"] | results.get("groups", {})).items()}


def _scores(values: dict[str, Any]) -> Scores:
    """Of `acc,none` and `acc_stderr,none`; other filters than none are named with the metric."""
    numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float) and isfinite(value)}
    scores = {}
    for key in values:
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr"):
            error = numbers.get(f"{metric}_stderr,{chosen}")
            scores[metric if chosen == "none" else key] = (numbers.get(key), error)
    return scores
