"""What do tasks of EleutherAI's lm-evaluation-harness say of the base and of the tuned model?"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
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
# What a task raises that cannot be read, or whose data cannot.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, yaml.YAMLError)
# By task and metric the value and its standard error.
Scores = dict[str, dict[str, tuple[float | None, float | None]]]


@dataclass(frozen=True)
class HarnessTasks:
    """The harness's manager of tasks, what is to be run, by name or file, and how."""

    manager: "TaskManager"
    chosen: list[str]
    settings: Eval


def load_harness_tasks(settings: Eval) -> HarnessTasks | None:
    """The tasks of `eval.harness_tasks`, their data fetched; None without any.

    Raises UserError for a name that the harness does not know and a task that cannot be loaded.
    """
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


def _evaluate(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: HarnessTasks) -> Scores:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # its progress bars
    with quiet, _without_tying(model):
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=tasks.settings.batch_size or BATCH_SIZE),
            tasks=tasks.chosen,
            task_manager=tasks.manager,
            limit=tasks.settings.harness_limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    return {name: dict(_metrics(values)) for name, values in (results["results"] | results.get("groups", {})).items()}


def _metrics(values: dict[str, Any]) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    """Metric -> value and standard error, from `acc,none` and `acc_stderr,none`; other filters are named."""
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr"):
            name = metric if filtered == "none" else key
            yield name, (_number(value), _number(values.get(f"{metric}_stderr,{filtered}")))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


@contextmanager
def _without_tying(model: TrainedModel) -> Iterator[None]:
    """Within the block nothing ties the model's weights, as the harness would: it breaks embeddings that an adapter
    trains.
    """
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
