"""How does one run look in a browser? `report.html`: the verdict first, then what it rests on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config.settings import flatten_settings
from finetune.config.spelling import spell_plain
from finetune.evaluation.metrics import HIGHER_IS_BETTER, PER_PROMPT
from finetune.reporting.console import format_arm, format_interval, harness_rows
from finetune.reporting.figures import intervals, learning_rate, losses
from finetune.reporting.html import details, escape, example, heading, html_figure, html_page, html_table, paragraph
from finetune.runs.files import read_jsonl, write_text

SHOWN = 25  # examples won, and examples lost
STYLES = {"tuning_wins": "verdict", "tuning_hurts": "verdict bad", "nothing_works": "verdict bad"}


def write_run_page(folder: Path) -> None:
    """Write `report.html` from the other files of a complete run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    predictions, history = (read_jsonl(folder / f"{name}.jsonl") for name in ("predictions", "history"))
    write_text(folder / "report.html", render_run_page(result, predictions, history))


def render_run_page(result: dict[str, Any], predictions: list[dict[str, Any]], history: list[dict[str, Any]]) -> str:
    """The page's HTML."""
    outcome = result["evaluation"]
    verdict = outcome["verdict"]
    return html_page(
        result["name"],
        paragraph(verdict["sentence"], STYLES.get(verdict["kind"], "verdict dim")),
        *_scores(outcome),
        *_forgetting(outcome["retention"]),
        *_harness(outcome.get("harness") or {}),
        *_learning(history),
        *_examples(predictions, outcome),
        *_trained_on(result["data"]),
        *_settings(result["config"], result["changed_settings"]),
        *_cost(result),
        *_provenance(result),
    )


def _scores(outcome: dict[str, Any]) -> list[str]:
    against = outcome["verdict"]["against"]
    arms = outcome["arms"]
    header = [
        "metric",
        *(format_arm(arm, outcome) for arm in arms),
        f"tuned - {format_arm(against, outcome)}",
        "p",
        "test",
    ]
    rows = [
        [
            metric if HIGHER_IS_BETTER[metric] else f"{metric} (less is better)",
            *(format_interval(arm[metric]) for arm in arms.values()),
            format_interval(apart, "+"),
            f"{apart['p']:.2g}",
            apart["test"],
        ]
        for metric, apart in outcome["differences"][against].items()
    ]
    headline = outcome["metric"]
    cut = ", ".join(f"{found['unfinished_answers']} of {format_arm(arm, outcome)}" for arm, found in arms.items())
    return [
        heading(f"{outcome['prompts']} held-out {outcome['split']} prompts"),
        html_table(header, rows),
        paragraph("Means with 95 % intervals (BCa bootstrap); differences are paired by prompt.", "dim"),
        html_figure(
            intervals(headline, {format_arm(arm, outcome): found[headline] for arm, found in arms.items()}, "")
        ),
        paragraph(f"Answers cut off at {outcome['max_new_tokens']} tokens: {cut}."),
    ]


def _forgetting(retention: dict[str, Any] | None) -> list[str]:
    if not retention:
        return []
    parts = {name: part for name, part in retention.items() if isinstance(part, dict)}
    rows = [
        [
            "general text" if name == "passages" else "simple questions",
            part["metric"],
            *(format_interval(part[arm]) for arm in ("base", "tuned")),
            format_interval(part["difference"], "+"),
        ]
        for name, part in parts.items()
    ]
    return [
        heading("What it forgot"),
        paragraph(f"{retention['sentence']}.", "bad" if retention["forgot"] else ""),
        html_table(["", "metric", "base", "tuned", "difference"], rows),
    ]


def _harness(outcome: dict[str, Any]) -> list[str]:
    table = html_table(["task", "metric", "base", "tuned"], list(harness_rows(outcome)))
    note = paragraph("Values with their standard errors.", "dim")
    return [heading("lm-evaluation-harness"), table, note] if outcome else []


def _learning(history: list[dict[str, Any]]) -> list[str]:
    figures = [html_figure(losses({"": history}, axis)) for axis in ("step", "tokens", "train_seconds")]
    rest = details("By tokens and by time; learning rate", "".join(figures[1:]) + _rate(history))
    return [heading("Learning"), figures[0], rest]


def _rate(history: list[dict[str, Any]]) -> str:
    return html_figure(learning_rate(history))


def _examples(predictions: list[dict[str, Any]], outcome: dict[str, Any]) -> list[str]:
    metric, against = outcome["metric"], outcome["verdict"]["against"]
    if metric not in PER_PROMPT and metric != "perplexity":
        metric = next((name for name in predictions[0]["tuned"]["scores"]), metric)
    if not predictions or metric not in predictions[0]["tuned"]["scores"]:
        return []
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    gains = [sign * (row["tuned"]["scores"][metric] - row[against]["scores"][metric]) for row in predictions]
    order = sorted(range(len(gains)), key=gains.__getitem__)
    lost = [i for i in order if gains[i] < 0]
    won = [i for i in reversed(order) if gains[i] > 0]
    equal = len(gains) - len(lost) - len(won)
    told = (
        f"By {metric}, tuned against {format_arm(against, outcome)}: {len(lost)} lost, {len(won)} won, {equal} equal."
    )
    parts = [heading("Examples"), paragraph(told)]
    for title, chosen in (("Lost", lost), ("Won", won)):
        if chosen:
            shown = f"{title}: {min(SHOWN, len(chosen))} of {len(chosen)}, the largest differences first"
            parts += [f"<h3>{escape(shown)}</h3>"]
            parts += [_example(predictions[i], metric, outcome) for i in chosen[:SHOWN]]
    return parts


def _example(row: Mapping[str, Any], metric: str, outcome: dict[str, Any]) -> str:
    lines = [("prompt", row["prompt"][-1]["content"] if row["prompt"] else ""), ("reference", row["reference"])]
    for arm in outcome["arms"]:
        answers = [draw.get("answer", "") for draw in row[arm].get("draws", [row[arm]])]
        lines.append((f"{format_arm(arm, outcome)} {row[arm]['scores'][metric]:.2f}", "\n\n".join(answers)))
    return example(row["place"], lines)


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
    told = [details(title, _list(lines)) for title, lines in found if lines]
    examples = data.get("examples", [])
    if examples:
        told.append(f"<p>The first rows: {_span('loss', 'what carries loss')}, {_span('context', 'context')}.</p>")
    for row in examples:
        spans = "".join(_span(*span) for span in row["spans"])
        told.append(f"<h3>{escape(row['place'])}</h3><pre>{spans}</pre>")
    see = "stage=preview with the same settings shows more rows, token by token (preview.html)."
    return [
        heading("What it was trained on"),
        paragraph(counts),
        html_table(["split", *names.values()], rows),
        *told,
        paragraph(see, "dim"),
    ]


def _span(kind: str, text: str) -> str:
    return f"<span class={kind}>{escape(text)}</span>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _settings(config: dict[str, Any], changed: dict[str, tuple[Any, Any]]) -> list[str]:
    rows = [[key, spell_plain(value), spell_plain(default)] for key, (value, default) in changed.items()]
    full = [[key, spell_plain(value)] for key, value in flatten_settings(config).items()]
    parts = [html_table(["setting", "here", "default"], rows)] if rows else [paragraph("All are the defaults.")]
    return [heading("Settings"), *parts, details("All settings", html_table(["setting", "value"], full))]


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
    return [heading("Cost"), html_table(["", ""], rows)]


def _provenance(result: dict[str, Any]) -> list[str]:
    model = {f"model {key}": value for key, value in result["model"].items() if "parameters" not in key and value}
    facts = {"data fingerprint": result["data"]["fingerprint"], "seed": result["seed"], **model, **result["versions"]}
    return [heading("Provenance"), html_table(["", ""], facts.items(), texts=[1])]
