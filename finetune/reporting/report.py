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
from finetune.errors import without_secrets
from finetune.machine import device
from finetune.model import base as model
from finetune.reporting import preview, run_page
from finetune.reporting.progress import Watch
from finetune.runs import folder as checkpoint
from finetune.training.prepare import Prepared

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "hydra-core")


class Clock:
    """Seconds spent in each phase of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the block's time to the phase."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def collect(
    config: Config,
    folder: Path,
    trained: Any,
    prepared: Prepared,
    watch: Watch,
    evaluation: dict[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """Everything that result.json holds."""
    parameters, trainable = model.count_parameters(trained)
    return {
        "name": folder.name,
        "status": "complete",
        "seed": config.seed,
        "config": without_secrets(checkpoint.plain(config)),
        "data": {
            "fingerprint": prepared.splits.fingerprint,
            "counts": prepared.splits.counts,
            "bad_rows": prepared.splits.bad,
            "shared": prepared.splits.shared,
            "splits": {name: asdict(size) for name, size in prepared.rows.sizes.items()},
            "examples": preview.examples(prepared),
        },
        "model": {
            **model.provenance(config.model, trained),
            "parameters": parameters,
            "trainable_parameters": trainable,
        },
        "training": watch.outcome(),
        "evaluation": evaluation,
        "peak_memory_bytes": device.peak_memory_bytes(),
        "seconds": {phase: round(seconds, 2) for phase, seconds in clock.seconds.items()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }


@contextmanager
def leave_history(folder: Path, watch: Watch) -> Iterator[None]:
    """Where the block ends early, write history.jsonl as far as it goes: of a trial that was pruned, or diverged."""
    try:
        yield
    except BaseException:
        if watch.history and watch.screen.logs:
            _write_rows(folder / "history.jsonl", watch.history)
        raise


def write(
    folder: Path, result: dict[str, Any], predictions: list[dict[str, Any]], history: list[dict[str, Any]]
) -> None:
    """Write the run's files; with result.json it is complete, and report.html follows from the others.

    A trial of a search is left as a run that is complete but for its test prompts: selection.json takes the place of
    result.json, and there is no page.
    """
    final = result["evaluation"]["split"] == "test"
    answered = "predictions" if final else "validation_predictions"
    for name, rows in ((answered, predictions), ("history", history)):
        _write_rows(folder / f"{name}.jsonl", rows)
    name = "result.json" if final else checkpoint.SELECTION
    checkpoint.write(folder / name, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if final:
        run_page.write(folder)


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    checkpoint.write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
