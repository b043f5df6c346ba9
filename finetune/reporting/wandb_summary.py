"""What stands for a run in Weights & Biases?"""

import json
from pathlib import Path
from typing import Any


def summarise_result(result: dict[str, Any]) -> dict[str, Any]:
    """Scores with their intervals, differences, verdict, what was forgotten, data and costs of a result.json."""
    outcome = result["evaluation"]
    prefix = "evaluation" if outcome["split"] == "test" else outcome["split"]
    scores = {f"{prefix}/{key}": value for key, value in _intervals(outcome["arms"]).items()}
    apart = {f"evaluation/tuned - {key}": value for key, value in _intervals(outcome["differences"]).items()}
    verdict = {f"verdict/{key}": value for key, value in (outcome["verdict"] or {}).items()}
    data = result["data"]["counts"] | {"bad_rows": "\n".join(result["data"]["bad_rows"])}
    costs = {"data": data, "training": result["training"], "seconds": result["seconds"]}
    parts = {f"{part}/{key}": value for part, values in costs.items() for key, value in values.items()}
    general = _retention(outcome["retention"] or {}) | _harness(outcome.get("harness") or {})
    return scores | apart | verdict | general | parts


def _harness(outcome: dict[str, Any]) -> dict[str, Any]:
    return {
        f"harness/{task}/{metric}/{key}": value
        for task, metrics in outcome.items()
        for metric, found in metrics.items()
        for key, value in found.items()
        if value is not None
    }


def _retention(outcome: dict[str, Any]) -> dict[str, Any]:
    scores = {
        f"retention/{arm}/{part['metric']}": part[arm]["mean"]
        for part in outcome.values()
        if isinstance(part, dict)
        for arm in ("base", "tuned")
    }
    return scores | {f"retention/{key}": outcome[key] for key in ("forgot", "sentence") if key in outcome}


def _intervals(arms: dict[str, Any]) -> dict[str, float]:
    """By `arm/metric` the mean, and under `low` and `high` below it the ends of its interval."""
    found = {}
    for arm, metrics in arms.items():
        for metric, value in metrics.items():
            if isinstance(value, dict):
                found[f"{arm}/{metric}"] = value["mean"]
                found |= {f"{arm}/{metric}/{end}": value[end] for end in ("low", "high")}
    return found


def prediction_table(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of the table of held-out predictions."""
    with (folder / "predictions.jsonl").open(encoding="utf-8") as lines:  # not splitlines: U+2028 may stand in a text
        rows = [_flatten(json.loads(line)) for line in lines]
    return list(rows[0]), [list(row.values()) for row in rows]


def _flatten(prediction: dict[str, Any]) -> dict[str, Any]:
    arms = {key: value for key, value in prediction.items() if isinstance(value, dict)}
    return {
        "prompt": "\n\n".join(f"{message['role']}: {message['content']}" for message in prediction["prompt"]),
        "reference": prediction["reference"],
        **{f"{arm}/answer": _answers(value) for arm, value in arms.items()},
        **{f"{arm}/{metric}": score for arm, value in arms.items() for metric, score in value["scores"].items()},
    }


def _answers(arm: dict[str, Any]) -> str | None:
    """The arm's answer, or those to each draw of examples."""
    given = [draw["answer"] for draw in arm.get("draws", [arm]) if "answer" in draw]
    return "\n---\n".join(given) if given else None
