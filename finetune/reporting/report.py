"""What happened? The run's result.json, predictions.jsonl, history.jsonl and report.html."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.config.schema import Config
from finetune.config.settings import changed_settings, to_plain
from finetune.errors import without_secrets
from finetune.machine.process_memory import peak_memory_bytes
from finetune.model.adapter import count_parameters
from finetune.model.base import model_provenance
from finetune.reporting.progress import TrainingProgress
from finetune.reporting.run_page import write_run_page
from finetune.runs.files import write_jsonl, write_text
from finetune.runs.folder import SELECTION
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
    folder: Path,
    trained: Any,
    prepared: PreparedRun,
    watch: TrainingProgress,
    evaluation: dict[str, Any],
    clock: PhaseTimer,
) -> dict[str, Any]:
    """Everything that result.json holds."""
    parameters, trainable = count_parameters(trained)
    return {
        "name": folder.name,
        "status": "complete",
        "seed": config.seed,
        "config": without_secrets(to_plain(config)),
        "changed_settings": changed_settings(without_secrets(to_plain(config)), to_plain(defaults)),
        "data": {
            "fingerprint": prepared.splits.fingerprint,
            "counts": prepared.splits.counts,
            "bad_rows": prepared.splits.bad,
            "shared": prepared.splits.shared,
            "splits": {name: asdict(size) for name, size in prepared.rows.sizes.items()},
            "examples": example_spans(prepared),
        },
        "model": {
            **model_provenance(config.model, trained),
            "parameters": parameters,
            "trainable_parameters": trainable,
        },
        "training": watch.outcome(),
        "evaluation": evaluation,
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds": {phase: round(seconds, 2) for phase, seconds in clock.seconds.items()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }


@contextmanager
def keep_history(folder: Path, watch: TrainingProgress) -> Iterator[None]:
    """Where the block ends early, write history.jsonl as far as it goes: of a trial that was pruned, or diverged."""
    try:
        yield
    except BaseException:
        if watch.history and watch.screen.logs:
            write_jsonl(folder / "history.jsonl", watch.history)
        raise


def write_run_files(
    folder: Path, result: dict[str, Any], predictions: list[dict[str, Any]], history: list[dict[str, Any]]
) -> None:
    """Write the run's files; with result.json it is complete, and report.html follows from the others.

    A trial of a search is left as a run that is complete but for its test prompts: selection.json takes the place of
    result.json, and there is no page.
    """
    final = result["evaluation"]["split"] == "test"
    answered = "predictions" if final else "validation_predictions"
    for name, rows in ((answered, predictions), ("history", history)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    name = "result.json" if final else SELECTION
    write_text(folder / name, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if final:
        write_run_page(folder)
