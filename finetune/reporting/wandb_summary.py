"""What stands for a run in Weights & Biases?"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from finetune.data.splits import Message
from finetune.runs.predictions import Answered, Prediction
from finetune.runs.result import Forgetting, Interval, RunResult


def summarise_result(result: RunResult) -> dict[str, Any]:
    """Scores with their intervals, differences, verdict, what was forgotten, data and costs; None for NaN, infinity."""
    evaluation = result.evaluation
    prefix = "evaluation" if evaluation.split == "test" else evaluation.split
    summary: dict[str, Any] = {}
    for arm, outcome in evaluation.arms.items():
        summary |= _intervals(f"{prefix}/{arm}", outcome.scores)
    for arm, differences in evaluation.differences.items():
        summary |= _intervals(f"evaluation/tuned - {arm}", differences)
    summary |= _prefixed("verdict", vars(evaluation.verdict) if evaluation.verdict else {})
    summary |= _forgetting(evaluation.retention) if evaluation.retention else {}
    for task, scores in evaluation.harness.items():
        for metric, score in scores.items():
            values = {name: value for name, value in vars(score).items() if value is not None}
            summary |= _prefixed(f"harness/{task}/{metric}", values)
    summary |= _prefixed("data", result.data.counts | {"bad_rows": "\n".join(result.data.bad_rows)})
    summary |= _prefixed("training", vars(result.training)) | _prefixed("seconds", result.seconds)
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in summary.items()}


def _intervals(prefix: str, scores: Mapping[str, Interval]) -> dict[str, float]:
    """By metric the mean, and under `low` and `high` below it the ends of its interval."""
    values: dict[str, float] = {}
    for metric, score in scores.items():
        name = f"{prefix}/{metric}"
        values |= {name: score.mean, f"{name}/low": score.low, f"{name}/high": score.high}
    return values


def _forgetting(forgetting: Forgetting) -> dict[str, Any]:
    scores = {f"base/{part.metric}": part.base.mean for part in forgetting.parts.values()}
    scores |= {f"tuned/{part.metric}": part.tuned.mean for part in forgetting.parts.values()}
    return _prefixed("retention", scores | {"forgot": forgetting.forgot, "sentence": forgetting.sentence})


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{key}": value for key, value in values.items()}


def prediction_table(predictions: list[Prediction]) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of the table of held-out predictions."""
    rows = [_columns(prediction) for prediction in predictions]
    return list(rows[0]), [list(row.values()) for row in rows]


def _columns(prediction: Prediction) -> dict[str, Any]:
    arms = prediction.arms.items()
    return {
        "prompt": "\n\n".join(map(_message, prediction.prompt)),
        "reference": prediction.reference,
        **{f"{arm}/answer": _answers(reply) for arm, reply in arms},
        **{f"{arm}/{metric}": score for arm, reply in arms for metric, score in reply.scores.items()},
    }


def _message(message: Message) -> str:
    return f"{message['role']}: {message['content']}"


def _answers(reply: Answered) -> str | None:
    """The answer, or those to each few-shot sample; None where none was asked for."""
    answers = [sample.answer for sample in reply.samples if sample.answer is not None]
    return "\n---\n".join(answers) if answers else None
