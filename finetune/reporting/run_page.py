"""How does one run look in a browser? `report.html`: the verdict first, then what it rests on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config import settings
from finetune.evaluation import metrics
from finetune.reporting import figures as curves
from finetune.reporting import html as page
from finetune.reporting.console import arm_name, harness_rows, with_interval
from finetune.runs import folder as checkpoint

SHOWN = 25  # examples won, and examples lost
STYLES = {"tuning_wins": "verdict", "tuning_hurts": "verdict bad", "nothing_works": "verdict bad"}


def write(folder: Path) -> None:
    """Write `report.html` from the other files of a complete run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    predictions, history = (read_lines(folder / f"{name}.jsonl") for name in ("predictions", "history"))
    checkpoint.write(folder / "report.html", compose(result, predictions, history))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a row may hold U+2028, which ends no line."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def compose(result: dict[str, Any], predictions: list[dict[str, Any]], history: list[dict[str, Any]]) -> str:
    """The page's HTML."""
    outcome = result["evaluation"]
    verdict = outcome["verdict"]
    return page.page(
        result["name"],
        page.paragraph(verdict["sentence"], STYLES.get(verdict["kind"], "verdict dim")),
        *_scores(outcome),
        *_forgetting(outcome["retention"]),
        *_harness(outcome.get("harness") or {}),
        *_learning(history),
        *_examples(predictions, outcome),
        *_trained_on(result["data"]),
        *_settings(result["config"]),
        *_cost(result),
        *_provenance(result),
    )


def _scores(outcome: dict[str, Any]) -> list[str]:
    against = outcome["verdict"]["against"]
    arms = outcome["arms"]
    header = ["metric", *(arm_name(arm, outcome) for arm in arms), f"tuned - {arm_name(against, outcome)}", "p", "test"]
    rows = [
        [
            metric if metrics.HIGHER_IS_BETTER[metric] else f"{metric} (less is better)",
            *(with_interval(arm[metric]) for arm in arms.values()),
            with_interval(apart, "+"),
            f"{apart['p']:.2g}",
            apart["test"],
        ]
        for metric, apart in outcome["differences"][against].items()
    ]
    headline = outcome["metric"]
    cut = ", ".join(f"{found['unfinished_answers']} of {arm_name(arm, outcome)}" for arm, found in arms.items())
    return [
        page.heading(f"{outcome['prompts']} held-out {outcome['split']} prompts"),
        page.table(header, rows),
        page.paragraph("Means with 95 % intervals (BCa bootstrap); differences are paired by prompt.", "dim"),
        page.figure(
            curves.intervals(headline, {arm_name(arm, outcome): found[headline] for arm, found in arms.items()}, "")
        ),
        page.paragraph(f"Answers cut off at {outcome['max_new_tokens']} tokens: {cut}."),
    ]


def _forgetting(retention: dict[str, Any] | None) -> list[str]:
    if not retention:
        return []
    parts = {name: part for name, part in retention.items() if isinstance(part, dict)}
    rows = [
        [
            "general text" if name == "passages" else "simple questions",
            part["metric"],
            *(with_interval(part[arm]) for arm in ("base", "tuned")),
            with_interval(part["difference"], "+"),
        ]
        for name, part in parts.items()
    ]
    return [
        page.heading("What it forgot"),
        page.paragraph(f"{retention['sentence']}.", "bad" if retention["forgot"] else ""),
        page.table(["", "metric", "base", "tuned", "difference"], rows),
    ]


def _harness(outcome: dict[str, Any]) -> list[str]:
    table = page.table(["task", "metric", "base", "tuned"], list(harness_rows(outcome)))
    note = page.paragraph("Values with their standard errors.", "dim")
    return [page.heading("lm-evaluation-harness"), table, note] if outcome else []


def _learning(history: list[dict[str, Any]]) -> list[str]:
    figures = [page.figure(curves.losses({"": history}, axis)) for axis in ("step", "tokens", "train_seconds")]
    rest = page.details("By tokens and by time; learning rate", "".join(figures[1:]) + _rate(history))
    return [page.heading("Learning"), figures[0], rest]


def _rate(history: list[dict[str, Any]]) -> str:
    return page.figure(curves.learning_rate(history))


def _examples(predictions: list[dict[str, Any]], outcome: dict[str, Any]) -> list[str]:
    metric, against = outcome["metric"], outcome["verdict"]["against"]
    if metric not in metrics.PER_PROMPT and metric != "perplexity":
        metric = next((name for name in predictions[0]["tuned"]["scores"]), metric)
    if not predictions or metric not in predictions[0]["tuned"]["scores"]:
        return []
    sign = 1 if metrics.HIGHER_IS_BETTER[metric] else -1
    gains = [sign * (row["tuned"]["scores"][metric] - row[against]["scores"][metric]) for row in predictions]
    order = sorted(range(len(gains)), key=gains.__getitem__)
    lost = [i for i in order if gains[i] < 0]
    won = [i for i in reversed(order) if gains[i] > 0]
    equal = len(gains) - len(lost) - len(won)
    told = f"By {metric}, tuned against {arm_name(against, outcome)}: {len(lost)} lost, {len(won)} won, {equal} equal."
    parts = [page.heading("Examples"), page.paragraph(told)]
    for title, chosen in (("Lost", lost), ("Won", won)):
        if chosen:
            shown = f"{title}: {min(SHOWN, len(chosen))} of {len(chosen)}, the largest differences first"
            parts += [f"<h3>{page.text(shown)}</h3>"]
            parts += [_example(predictions[i], metric, outcome) for i in chosen[:SHOWN]]
    return parts


def _example(row: Mapping[str, Any], metric: str, outcome: dict[str, Any]) -> str:
    lines = [("prompt", row["prompt"][-1]["content"] if row["prompt"] else ""), ("reference", row["reference"])]
    for arm in outcome["arms"]:
        answers = [draw.get("answer", "") for draw in row[arm].get("draws", [row[arm]])]
        lines.append((f"{arm_name(arm, outcome)} {row[arm]['scores'][metric]:.2f}", "\n\n".join(answers)))
    return page.example(row["place"], lines)


def _trained_on(data: dict[str, Any]) -> list[str]:
    counts = " · ".join(f"{value:,} {name}" for name, value in data["counts"].items() if value)
    names = {
        "rows": "rows",
        "tokens": "tokens",
        "loss_tokens": "with loss",
        "truncated": "cut off",
        "dropped": "dropped",
    }
    rows = [
        [name, *(f"{size.get(key, 0):,}" if isinstance(size.get(key, 0), int) else size[key] for key in names)]
        for name, size in data["splits"].items()
    ]
    bad = data["counts"].get("bad", len(data["bad_rows"]))
    found = [(f"Rows left out: {bad:,}, the first", data["bad_rows"]), ("Shared between splits", data["shared"])]
    told = [page.details(title, _list(lines)) for title, lines in found if lines]
    examples = data.get("examples", [])
    if examples:
        told.append(f"<p>The first rows: {_span('loss', 'what carries loss')}, {_span('context', 'context')}.</p>")
    for example in examples:
        spans = "".join(_span(*span) for span in example["spans"])
        told.append(f"<h3>{page.text(example['place'])}</h3><pre>{spans}</pre>")
    see = "stage=preview with the same settings shows more rows, token by token (preview.html)."
    return [
        page.heading("What it was trained on"),
        page.paragraph(counts),
        page.table(["split", *names.values()], rows),
        *told,
        page.paragraph(see, "dim"),
    ]


def _span(kind: str, text: str) -> str:
    return f"<span class={kind}>{page.text(text)}</span>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{page.text(line)}</li>" for line in lines) + "</ul>"


def _settings(config: dict[str, Any]) -> list[str]:
    changed = settings.changed(config)
    rows = [[key, settings.written(value), settings.written(default)] for key, (value, default) in changed.items()]
    full = [[key, settings.written(value)] for key, value in settings.flatten(config).items()]
    parts = [page.table(["setting", "here", "default"], rows)] if rows else [page.paragraph("All are the defaults.")]
    return [page.heading("Settings"), *parts, page.details("All settings", page.table(["setting", "value"], full))]


def _cost(result: dict[str, Any]) -> list[str]:
    training, seconds = result["training"], result["seconds"]
    rows = [
        ["seconds, all phases", f"{sum(seconds.values()):,.0f}"],
        *([f"seconds, {phase}", f"{value:,.1f}"] for phase, value in seconds.items()),
        ["steps", f"{training['steps']:,}"],
        ["tokens trained on", f"{training['tokens']:,}"],
        ["tokens per second", f"{training['tokens_per_second']:,.0f}"],
        ["peak memory in training", f"{training['peak_memory_bytes'] / 2**30:.2f} GiB"],
        ["parameters trained", f"{result['model']['trainable_parameters']:,} of {result['model']['parameters']:,}"],
    ]
    return [page.heading("Cost"), page.table(["", ""], rows)]


def _provenance(result: dict[str, Any]) -> list[str]:
    model = {f"model {key}": value for key, value in result["model"].items() if "parameters" not in key and value}
    facts = {"data fingerprint": result["data"]["fingerprint"], "seed": result["seed"], **model, **result["versions"]}
    return [page.heading("Provenance"), page.table(["", ""], facts.items(), texts=[1])]
