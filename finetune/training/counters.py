"""What has training counted so far? Each process goes on counting from the checkpoint from which it continues."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState


@dataclass
class Counters:
    """What this process has counted since the run's first step. Tokens are real ones, padding not counted."""

    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0  # spent in training steps
    loss_sum: float = 0.0  # of the steps since a loss was logged
    loss_steps: int = 0  # their number
    skipped_updates: int = 0  # steps that changed nothing, as their loss or gradient was not finite
    skipped_in_a_row: int = 0
    parts: int = 1  # in so many a micro-batch is computed, one after the other; more than one where memory ran out
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0  # spent in writing them; in a checkpoint, those before it

    def write(self, checkpoint: Path) -> None:
        """Add this process's file to a checkpoint."""
        _file(checkpoint).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def read(self, checkpoint: Path) -> None:
        """Go on from what this process had counted."""
        vars(self).update(json.loads(_file(checkpoint).read_text(encoding="utf-8")))


def _file(checkpoint: Path) -> Path:
    return checkpoint / f"counters_{PartialState().process_index}.json"
