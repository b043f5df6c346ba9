"""How does a comparison of runs look in a browser? Ranking, curves, settings, and all answers side by side."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.comparison.compare import Comparison
from finetune.comparison.pairwise import IMPORTANCE_METHOD, prompt_score, prompt_scores
from finetune.comparison.table import cost, settings_of, to_best
from finetune.evaluation.metrics import SPELLED
from finetune.reporting import figures
from finetune.reporting.console import first_answer, format_interval
from finetune.reporting.figures import distributions, intervals, losses, parallel_coordinates
from finetune.reporting.html import heading, html_data, html_figure, html_page, html_table, paragraph
from finetune.runs.files import write_text
from finetune.runs.read import CompletedRun

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


Histories = dict[str, list[dict[str, Any]]]
DETAILED = 10  # runs, the best, whose scores and answers are shown
ANSWER_LENGTH = 600  # characters of an answer that the page holds
BROWSER_BYTES = 2_000_000  # of answers that the page holds; the rest is counted
# Shows the chosen answers: those that hold a text, or where runs differ; the largest differences first.
BROWSE = """
for (const place of document.querySelectorAll(".browser")) {
  const known = JSON.parse(document.getElementById(place.dataset.of).textContent);
  const [search, only, list, count] = [".search", ".only", ".answers", ".count"].map(x => place.querySelector(x));
  const line = (name, content) => {
    const [dt, dd] = ["dt", "dd"].map(tag => document.createElement(tag));
    dt.textContent = name; dd.textContent = content; return [dt, dd];
  };
  const show = () => {
    const wanted = search.value.toLowerCase();
    const chosen = known.rows.filter(row => (!only.checked || row.spread > 0) &&
      [row.prompt, row.reference, ...row.answers].some(one => one.toLowerCase().includes(wanted)));
    count.textContent = `${chosen.length} of ${known.rows.length} prompts`;
    list.replaceChildren(...chosen.slice(0, 100).map(row => {
      const [box, all, title] = ["div", "dl", "p"].map(tag => document.createElement(tag));
      box.className = "example"; title.className = "dim"; title.textContent = row.place;
      all.append(...line("prompt", row.prompt), ...line("reference", row.reference));
      known.runs.forEach((run, i) => all.append(...line(`${run} ${row.scores[i].toFixed(2)}`, row.answers[i])));
      box.append(title, all); return box;
    }));
  };
  search.addEventListener("input", show); only.addEventListener("change", show); show();
}
"""


def write_comparison_page(file: Path, comparisons: list[Comparison], unfinished: list[Path]) -> None:
    """Write the page."""
    count = sum(len(comparison.runs) for comparison in comparisons)
    parts = comparison_parts(comparisons)
    if unfinished:
        parts.append(paragraph(f"Left out, as not complete: {', '.join(folder.name for folder in unfinished)}."))
    write_text(file, html_page(f"Comparison of {count} runs", *parts, script=BROWSE))


def settings_figures(comparison: Comparison) -> "dict[str, Figure]":
    """Parallel coordinates of settings and score, and the settings' importance; those that would tell something."""
    if not comparison.varying or len(comparison.runs) < 2:
        return {}
    lines = parallel_coordinates(comparison.varying, comparison.scores, comparison.metric)
    found, _ = comparison.importance
    bars = figures.bars(f"Importance of the settings ({IMPORTANCE_METHOD})", found)
    return {"parallel_coordinates": lines, **({"importance": bars} if found else {})}


def comparison_parts(comparisons: list[Comparison], learnt: Histories | None = None) -> list[str]:
    """Each comparison with what its runs learnt, or the first with what all of a sweep's trials did."""
    parts = []
    for number, comparison in enumerate(comparisons):
        own = {run.name: run.history for run in comparison.runs}
        parts += _comparison(comparison, number, own if learnt is None else {} if number else learnt)
    if len(comparisons) > 1:
        told = f"The runs answered {len(comparisons)} different sets of prompts; only runs on the same are paired."
        parts.insert(0, paragraph(told))
    return parts


def _comparison(comparison: Comparison, number: int, histories: Histories) -> list[str]:
    runs, metric = comparison.runs, comparison.metric
    title = f"{len(runs)} runs on {len(runs[0].predictions):,} {comparison.split} prompts by {SPELLED[metric]}"
    verdicts = [[run.name, run.verdict] for run in runs if run.verdict]
    best = replace(comparison, runs=runs[:DETAILED])
    only = f"Of {len(runs)} runs the best {DETAILED}:"
    return [
        heading(title),
        _ranked(comparison),
        *([paragraph(comparison.correction, "dim")] if len(runs) > 1 else []),
        html_figure(intervals(metric, {run.name: run.tuned(metric) for run in runs}, "")),
        *([heading("Verdicts"), html_table(["run", "verdict"], verdicts, texts=[1])] if verdicts else []),
        *learning_parts(histories),
        *_settings(comparison),
        *([paragraph(only)] if len(runs) > DETAILED else []),
        *_scores(best),
        *_browser(best, number),
    ]


def learning_parts(histories: Histories) -> list[str]:
    """The curves of what each run learnt."""
    figures = [html_figure(losses(histories, axis)) for axis in ("tokens", "train_seconds")]
    return [heading("Learning"), *figures] if histories else []


def _ranked(comparison: Comparison) -> str:
    names = ["group", "run", comparison.metric, "minus the best", "p (Holm)", *cost(comparison.runs[0].result)]
    rows = [
        [
            comparison.groups[i],
            run.name,
            format_interval(run.tuned(comparison.metric)),
            *to_best(comparison.to_best[i]),
            *cost(run.result).values(),
            settings_of(comparison.settings[i]),
        ]
        for i, run in enumerate(comparison.runs)
    ]
    return html_table([*names, "settings that differ"], rows, texts=[1, len(names)])


def _settings(comparison: Comparison) -> list[str]:
    figures = settings_figures(comparison)
    if not figures:
        return []
    parts = [heading("Settings"), *map(html_figure, figures.values())]
    return parts if "importance" in figures else [*parts, paragraph(comparison.importance[1], "dim")]


def _scores(comparison: Comparison) -> list[str]:
    scores = {run.name: prompt_scores(run.predictions, comparison.metric) for run in comparison.runs}
    return [heading("Scores"), html_figure(distributions(scores, comparison.metric))]


def _browser(comparison: Comparison, number: int) -> list[str]:
    spreads = dict(comparison.disagreements)
    order = [*spreads, *(i for i in range(len(comparison.runs[0].predictions)) if i not in spreads)]
    rows: list[dict[str, Any]] = []
    size = 0
    for index in order:
        row = _answers(comparison.runs, index, comparison.metric) | {"spread": spreads.get(index, 0)}
        size += len(json.dumps(row))
        if size > BROWSER_BYTES:
            break
        rows.append(row)
    left = len(order) - len(rows)
    name = f"answers-{number}"
    return [
        heading("Answers side by side"),
        *([paragraph(f"{left:,} prompts with the smallest differences are left out for size.")] if left else []),
        html_data(name, json.dumps({"runs": [run.name for run in comparison.runs], "rows": rows})),
        f'<div class="browser" data-of="{name}"><input class="search" placeholder="Search texts">'
        '<label> <input type="checkbox" class="only" checked> only where runs differ</label> '
        '<span class="count"></span>'
        '<div class="answers"></div></div>',
    ]


def _answers(runs: list[CompletedRun], index: int, metric: str) -> dict[str, Any]:
    row = runs[0].predictions[index]
    return {
        "place": row["place"],
        "prompt": row["prompt"][-1]["content"] if row["prompt"] else "",
        "reference": row["reference"],
        "scores": [prompt_score(run.predictions[index], "tuned", metric) for run in runs],
        "answers": [first_answer(run.predictions[index]["tuned"])[:ANSWER_LENGTH] for run in runs],
    }
