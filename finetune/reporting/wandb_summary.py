"""What stands for a run in Weights & Biases?"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from finetune.runs.predictions import Prediction
from finetune.runs.result import Forgetting, Interval, RunResult


def summarise_result(result: RunResult) -> dict[str, Any]:
    """Scores with their intervals, differences, verdict, what was forgotten, data and costs; None for NaN, infinity."""
    evaluation, data = result.evaluation, result.data
    prefix = "evaluation" if evaluation.split == "test" else evaluation.split
    parts: dict[str, dict[str, Any]] = {
        **{f"{prefix}/{arm}": _intervals(outcome.scores) for arm, outcome in evaluation.arms.items()},
        **{f"evaluation/tuned - {arm}": _intervals(scores) for arm, scores in evaluation.differences.items()},
        "verdict": vars(evaluation.verdict) if evaluation.verdict else {},
        "retention": _forgetting(evaluation.retention) if evaluation.retention else {},
        "data": data.counts | {"bad_rows": "\n".join(data.bad_rows)},
        "training": vars(result.training),
        "seconds": result.seconds,
    }
    for task, scores in evaluation.harness.items():
        for metric, score in scores.items():
            parts[f"harness/{task}/{metric}"] = {key: value for key, value in vars(score).items() if value is not None}
    summary = {f"{part}/{key}": value for part, values in parts.items() for key, value in values.items()}
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in summary.items()}


def _intervals(scores: Mapping[str, Interval]) -> dict[str, float]:
    """By metric the mean, and under `low` and `high` below it the ends of its interval."""
    values: dict[str, float] = {}
    for metric, score in scores.items():
        values |= {metric: score.mean, f"{metric}/low": score.low, f"{metric}/high": score.high}
    return values


def _forgetting(forgetting: Forgetting) -> dict[str, Any]:
    scores = {f"base/{part.metric}": part.base.mean for part in forgetting.parts.values()}
    scores |= {f"tuned/{part.metric}": part.tuned.mean for part in forgetting.parts.values()}
    return scores | {"forgot": forgetting.forgot, "sentence": forgetting.sentence}


def prediction_table(predictions: list[Prediction]) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of the table of held-out predictions."""
    rows = []
    for prediction in predictions:
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in prediction.prompt)
        row: dict[str, Any] = {"prompt": prompt, "reference": prediction.reference}
        row |= {f"{arm}/answer": reply.answer for arm, reply in prediction.arms.items()}
        for arm, reply in prediction.arms.items():
            row |= {f"{arm}/{metric}": score for metric, score in reply.scores.items()}
        rows.append(row)
    return list(rows[0]), [list(row.values()) for row in rows]
