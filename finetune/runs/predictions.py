"""What did each arm answer to each held-out prompt? The rows of `predictions.jsonl`, written and read here."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.data.splits import Message
from finetune.runs.files import read_jsonl, write_jsonl

PREDICTIONS, HISTORY = "predictions.jsonl", "history.jsonl"
History = list[dict[str, float]]  # what training logged, by step
OWN = ("place", "prompt", "reference")  # the columns of a row that are no arms


@dataclass(frozen=True)
class Answered:
    """What one arm replied to one prompt, with its scores; of several few-shot samples their mean, and each of them."""

    scores: dict[str, float]
    answer: str | None = None  # None where no answer was asked for
    finished: bool | None = None
    nll: float | None = None  # the reference's summed negative log-likelihood in nats, for perplexity
    tokens: int | None = None
    draws: "list[Answered] | None" = None

    @property
    def samples(self) -> "list[Answered]":
        """The reply to each few-shot sample; without samples, the one reply."""
        return self.draws or [self]

    @property
    def first_answer(self) -> str:
        return self.samples[0].answer or ""


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
    write_jsonl(file, [_without_none({name: row[name] for name in OWN} | row["arms"]) for row in rows])


def read_predictions(file: Path) -> list[Prediction]:
    """The rows of a file that `write_predictions` wrote."""
    return [
        Prediction(**{name: row.pop(name) for name in OWN}, arms={arm: _answered(reply) for arm, reply in row.items()})
        for row in read_jsonl(file)
    ]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _answered(reply: dict[str, Any]) -> Answered:
    samples = reply.pop("draws", None)
    return Answered(**reply, draws=samples and [_answered(sample) for sample in samples])
