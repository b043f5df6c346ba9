"""What did a run come to? The one definition of `result.json`, written and read here."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

from finetune.errors import UserError

FORMAT = 4  # raised when a field changes its name, type or meaning; a file of another format is refused
RESULT = "result.json"
SELECTION = "selection.json"  # what a trial of a search writes instead: its score on validation prompts
# What null stands for in an interval, as JSON has neither infinity nor NaN.
NULL_AS = {"mean": nan, "low": -inf, "high": inf}

VerdictKind = Literal["tuning_wins", "prompting_is_enough", "nothing_works", "tuning_hurts", "cannot_tell"]


@dataclass(frozen=True)
class Interval:
    """An estimate (a mean, or a corpus metric's value) and the ends of its 95 % interval; infinite where unknown."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """First arm minus second on the same prompts; p is two-sided, by the named test."""

    p: float
    test: Literal["McNemar", "permutation"]
    prompts: int


@dataclass(frozen=True)
class Verdict:
    """Whether tuning was worth it, in a sentence, and the arm that tuning was compared with."""

    kind: VerdictKind
    sentence: str
    against: str


@dataclass(frozen=True)
class ArmResult:
    """One way of answering the held-out prompts: its scores by metric, and what the answers took."""

    scores: dict[str, Interval]
    unfinished_answers: int
    seconds: float
    reused: bool  # every answer was computed by an earlier run


@dataclass(frozen=True)
class ForgettingPart:
    """One general set before and after training: forgot is beyond doubt, suspected is likely."""

    metric: str
    base: Interval
    tuned: Interval
    difference: Difference
    forgot: bool
    suspected: bool


@dataclass(frozen=True)
class Forgetting:
    """What the model forgot: the `passages` and the `questions`, and a sentence."""

    parts: dict[str, ForgettingPart]
    forgot: bool
    sentence: str


@dataclass(frozen=True)
class HarnessScore:
    """A metric of a task of lm-evaluation-harness before and after training, with standard errors."""

    base: float | None
    base_stderr: float | None
    tuned: float | None
    tuned_stderr: float | None


@dataclass(frozen=True)
class PromptRound:
    """The ways of prompting that were still compared, by name, with their scores on the first validation prompts."""

    prompts: int
    scores: dict[str, float]


@dataclass(frozen=True)
class BestPrompt:
    """Which way of prompting the base model is best on validation prompts, and what it costs."""

    name: str
    system: str  # the system prompt of the first prompt, empty where there is none
    prompt_tokens: float  # of a test prompt, in the mean
    tuned_prompt_tokens: float  # of what the tuned model is asked instead
    validation_answers: int
    rounds: list[PromptRound]
    left_out: list[str]  # ways of prompting that do not fit the model's context


@dataclass(frozen=True)
class EvaluationResult:
    """What the arms scored on held-out prompts; `differences` are tuned minus the arm, by arm and metric."""

    split: str
    prompts: int
    metric: str  # the headline metric, which decides the verdict
    max_new_tokens: int
    precision: str  # of the matrix products of all answers
    shots: int  # demonstrations before each few-shot prompt; 0 where there is no such arm
    arms: dict[str, ArmResult]
    differences: dict[str, dict[str, Difference]]
    retention: Forgetting | None
    verdict: Verdict | None  # None where the tuned model alone has answered
    harness: dict[str, dict[str, HarnessScore]] = field(default_factory=dict)  # by task and metric
    best_prompt: BestPrompt | None = None  # with `eval.best_prompt`

    def tuned(self, metric: str | None = None) -> Interval:
        return self.arms["tuned"].scores[metric or self.metric]


@dataclass(frozen=True)
class SplitSize:
    """What a split holds before truncation and packing."""

    rows: int
    tokens: int
    loss_tokens: int
    truncated: int  # rows that are cut at `max_length`
    dropped: int  # those of them that lose all loss tokens there, and so teach nothing (TRL leaves them out)
    longest_answer: int


@dataclass(frozen=True)
class ExampleSpans:
    """A training row: its place, and its text in spans of `context`, `loss` and `cut`."""

    place: str
    spans: list[tuple[str, str]]


@dataclass(frozen=True)
class DataResult:
    """What was trained on."""

    fingerprint: str
    counts: dict[str, int]
    bad_rows: list[str]
    shared: list[str]
    splits: dict[str, SplitSize]
    examples: list[ExampleSpans]


@dataclass(frozen=True)
class ModelResult:
    """Which weights were trained; `provenance` says where they came from."""

    provenance: dict[str, Any]
    parameters: int
    trainable_parameters: int


@dataclass(frozen=True)
class TrainingResult:
    """What training did. Tokens are real ones, padding not counted; seconds are those spent in training steps."""

    steps: int
    epochs: float
    tokens: int
    loss_tokens: int
    seconds: float
    tokens_per_second: float
    train_loss: float | None
    validation_loss: float | None
    peak_memory_bytes: int
    resumed_from_step: int
    skipped_updates: int  # steps that changed nothing, as their loss or gradient was not finite
    rows_at_a_time: int  # of a micro-batch on each device, fewer than its size where memory ran out
    checkpoints: int
    checkpoint_seconds: float  # spent in writing them, besides `seconds`


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A complete run."""

    format: int = FORMAT
    name: str
    status: Literal["complete"] = "complete"
    seed: int
    config: dict[str, Any]
    changed_settings: dict[str, tuple[Any, Any]]  # value and default, null for a setting that is absent
    data: DataResult
    model: ModelResult
    training: TrainingResult
    evaluation: EvaluationResult
    peak_memory_bytes: int
    seconds: dict[str, float]  # by phase
    versions: dict[str, str]


@dataclass(frozen=True)
class FailedResult:
    """A run that ended without a result: `status` is the name of its RunState."""

    name: str
    status: str
    reason: str
    seconds_in_all: float
    config: dict[str, Any]
    format: int = FORMAT


def name_arm(arm: str, shots: int) -> str:
    """An arm as users call it: `3-shot` for `few_shot`."""
    return (
        arm.replace("few_shot", f"{shots}-shot")
        .replace("zero_shot", "zero-shot")
        .replace("best_prompt", "best-prompt")
        .replace("_", " ")
    )


def read_result(file: Path) -> RunResult | FailedResult | None:
    """The result in a file, or None; raises UserError for one of another format, and for what is no result."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=_restore_infinity)
        if content.get("format") == FORMAT:
            return _validator(content["status"])(content)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: it is damaged: {reason}. Remove it, and the same command runs it again.") from error
    again = "Start the run again under a new name, or with the version that wrote it."
    raise UserError(f"{file}: another version of this program wrote it. {again}")


def _restore_infinity(fields: dict[str, Any]) -> dict[str, Any]:
    if not fields.keys() >= NULL_AS.keys():
        return fields
    return {key: NULL_AS.get(key) if value is None else value for key, value in fields.items()}


@cache
def _validator(status: str) -> Callable[[object], RunResult | FailedResult]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunResult if status == "complete" else FailedResult).validate_python
