"""What did each arm answer to each held-out prompt? The rows of `predictions.jsonl`, written and read here."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.data.splits import Message
from finetune.runs.files import read_jsonl, write_jsonl

PREDICTIONS, HISTORY = "predictions.jsonl", "history.jsonl"
REPLIES = "replies"  # the folder in which a run keeps what was replied, until it is complete
History = list[dict[str, float]]  # what training logged, by step
OWN = ("place", "prompt", "reference")  # the columns of a row that are no arms


@dataclass(frozen=True)
class Answered:
    """What one arm replied to one prompt, with its scores, and the places of the demonstrations before the prompt."""

    scores: dict[str, float]
    answer: str | None = None  # None where no answer was asked for
    finished: bool | None = None
    nll: float | None = None  # the reference's summed negative log-likelihood in nats, for perplexity
    tokens: int | None = None
    demonstrations: list[str] | None = None

    @property
    def text(self) -> str:
        """The answer, empty where none was asked for."""
        return self.answer or ""


@dataclass(frozen=True)
class Prediction:
    """One held-out prompt, its reference, and what each arm replied."""

    place: str
    prompt: list[Message]
    reference: str
    arms: dict[str, Answered]

    @property
    def question(self) -> str:
        return self.prompt[-1]["content"] if self.prompt else ""


def write_predictions(file: Path, predictions: list[Prediction]) -> None:
    """Write one row for each prompt, the arms beside `place`, `prompt` and `reference`."""
    rows = map(asdict, predictions)
    write_jsonl(file, [{name: row[name] for name in OWN} | _without_none(row["arms"]) for row in rows])


def read_predictions(file: Path) -> list[Prediction]:
    """The rows of a file that `write_predictions` wrote."""
    return [
        Prediction(**{name: row.pop(name) for name in OWN}, arms={arm: Answered(**reply) for arm, reply in row.items()})
        for row in read_jsonl(file)
    ]


def _without_none(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {arm: {key: item for key, item in reply.items() if item is not None} for arm, reply in arms.items()}
