"""What happened? The run's result.json, predictions.jsonl, history.jsonl and report.html."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from finetune.config.schema import Config
from finetune.config.settings import changed_settings, to_plain
from finetune.machine.process_memory import peak_memory_bytes
from finetune.model.adapter import count_parameters
from finetune.model.base import TrainedModel, model_provenance
from finetune.reporting.progress import TrainingProgress
from finetune.reporting.run_page import write_run_page
from finetune.runs.files import write_jsonl
from finetune.runs.folder import run_folder
from finetune.runs.predictions import HISTORY
from finetune.runs.read import CompletedRun, write_answers
from finetune.runs.result import DataResult, EvaluationResult, ModelResult, RunResult
from finetune.secrets import without_secrets
from finetune.training.prepare import PreparedRun
from finetune.training.row_preview import example_spans

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "hydra-core")


class PhaseTimer:
    """Seconds spent in each phase of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the block's time to the phase."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def collect_result(
    config: Config,
    defaults: Config,
    model: TrainedModel,
    prepared: PreparedRun,
    watch: TrainingProgress,
    evaluation: EvaluationResult,
    clock: PhaseTimer,
) -> RunResult:
    """Everything that result.json holds."""
    settings, splits = without_secrets(to_plain(config)), prepared.splits
    return RunResult(
        name=run_folder(config).name,
        seed=config.seed,
        config=settings,
        changed_settings=changed_settings(settings, to_plain(defaults)),
        data=DataResult(
            splits.fingerprint, splits.counts, splits.bad, splits.shared, prepared.rows.sizes, example_spans(prepared)
        ),
        model=ModelResult(model_provenance(config.model, model), *count_parameters(model)),
        training=watch.result(),
        evaluation=evaluation,
        peak_memory_bytes=peak_memory_bytes(),
        seconds={phase: round(seconds, 2) for phase, seconds in clock.seconds.items()},
        versions={"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    )


@contextmanager
def keep_history(folder: Path, watch: TrainingProgress) -> Iterator[None]:
    """Where the block ends early, write history.jsonl as far as it goes: of a trial that was pruned, or diverged."""
    try:
        yield
    except BaseException:
        watch.bar.stop()
        if watch.history and watch.console.logs:
            write_jsonl(folder / HISTORY, watch.history)
        raise


def write_run_files(run: CompletedRun) -> None:
    """Write the run's files but its result, which comes last; a trial on validation prompts has no page."""
    write_answers(run)
    if run.result.evaluation.split == "test":
        write_run_page(run)
