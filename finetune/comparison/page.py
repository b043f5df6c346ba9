"""How does a comparison of runs look in a browser? Ranking, curves, settings, and all answers side by side."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from plotly.graph_objects import Figure

from finetune.comparison.compare import Comparison
from finetune.comparison.pairwise import IMPORTANCE_METHOD, prompt_score, prompt_scores
from finetune.comparison.table import cost_table, different_prompts, ranking_table
from finetune.reporting import figures, html
from finetune.reporting.tables import Table, to_html
from finetune.runs.files import write_text
from finetune.runs.predictions import History

DETAILED = 10  # runs, the best, whose scores and answers are shown
ANSWER_LENGTH = 600  # characters of an answer that the page holds
BROWSER_BYTES = 2_000_000  # of answers that the page holds; the rest is counted
# Shows the chosen answers: those that hold a text, or where runs differ; the largest differences first.
BROWSE = """
for (const browser of document.querySelectorAll(".browser")) {
  const data = JSON.parse(document.getElementById(browser.dataset.of).textContent);
  const [search, only, list, count] = [".search", ".only", ".answers", ".count"].map(x => browser.querySelector(x));
  const line = (name, content) => {
    const [dt, dd] = ["dt", "dd"].map(tag => document.createElement(tag));
    dt.textContent = name; dd.textContent = content; return [dt, dd];
  };
  const show = () => {
    const wanted = search.value.toLowerCase();
    const chosen = data.rows.filter(row => (!only.checked || row.spread > 0) &&
      [row.prompt, row.reference, ...row.answers].some(text => text.toLowerCase().includes(wanted)));
    count.textContent = `${chosen.length} of ${data.rows.length} prompts`;
    list.replaceChildren(...chosen.slice(0, 100).map(row => {
      const [box, all, title] = ["div", "dl", "p"].map(tag => document.createElement(tag));
      box.className = "example"; title.className = "dim"; title.textContent = row.place;
      all.append(...line("prompt", row.prompt), ...line("reference", row.reference));
      data.runs.forEach((run, i) => all.append(...line(`${run} ${row.scores[i].toFixed(2)}`, row.answers[i])));
      box.append(title, all); return box;
    }));
  };
  search.addEventListener("input", show); only.addEventListener("change", show); show();
}
"""


def write_comparison_page(file: Path, comparisons: list[Comparison], unfinished: list[Path]) -> None:
    """Write the page of runs, and name those that are not on it."""
    count = sum(len(comparison.runs) for comparison in comparisons)
    names = ", ".join(folder.name for folder in unfinished)
    left_out = html.paragraph(f"Left out, as not complete: {names}.") if unfinished else ""
    write_text(file, html.page(f"Comparison of {count} runs", render_comparisons(comparisons), left_out, script=BROWSE))


def render_comparisons(comparisons: list[Comparison], histories: Mapping[str, History] | None = None) -> str:
    """Each comparison with what its runs learnt, or the first with the histories of all of a sweep's trials."""
    parts = [html.paragraph(different_prompts(comparisons))] if len(comparisons) > 1 else []
    for number, comparison in enumerate(comparisons):
        shown: Mapping[str, History] = {} if number else histories or {}
        if histories is None:
            shown = {run.name: run.history for run in comparison.runs}
        parts += _comparison(comparison, number, shown)
    return "\n".join(parts)


def _comparison(comparison: Comparison, number: int, histories: Mapping[str, History]) -> list[str]:
    runs, metric = comparison.runs, comparison.metric
    verdicts = [[run.name, run.verdict] for run in runs if run.verdict]
    best = runs[:DETAILED]
    scores = {run.name: prompt_scores(run.predictions, metric) for run in best}
    return [
        to_html(ranking_table(comparison, len(runs))),
        html.paragraph(comparison.correction, "dim") if len(runs) > 1 else "",
        html.figure(figures.score_intervals(metric, {run.name: run.tuned(metric) for run in runs})),
        to_html(cost_table(comparison)),
        to_html(Table("Verdicts", ["run", "verdict"], verdicts, prose=["verdict"])) if verdicts else "",
        render_learning(histories),
        _settings(comparison),
        html.paragraph(f"Of {len(runs)} runs the best {DETAILED}:") if len(runs) > DETAILED else "",
        html.heading("Scores"),
        html.figure(figures.distributions(scores, metric)),
        _browser(replace(comparison, runs=best), f"answers-{number}"),
    ]


def render_learning(histories: Mapping[str, History]) -> str:
    """The curves of what each run learnt."""
    curves = [html.figure(figures.losses(histories, axis)) for axis in ("tokens", "train_seconds")]
    return "".join([html.heading("Learning"), *curves]) if histories else ""


def settings_figures(comparison: Comparison) -> dict[str, Figure]:
    """Parallel coordinates of settings and score, and the settings' importance; each only where it shows something."""
    if not comparison.varying or len(comparison.runs) < 2:
        return {}
    lines = figures.parallel_coordinates(comparison.varying, comparison.scores, comparison.metric)
    importance, _ = comparison.importance
    bars = figures.bars(f"Importance of the settings ({IMPORTANCE_METHOD})", importance)
    return {"parallel_coordinates": lines} | ({"importance": bars} if importance else {})


def _settings(comparison: Comparison) -> str:
    if not (drawn := settings_figures(comparison)):
        return ""
    why_not = "" if "importance" in drawn else html.paragraph(comparison.importance[1], "dim")
    return "".join([html.heading("Settings"), *map(html.figure, drawn.values()), why_not])


def _browser(comparison: Comparison, name: str) -> str:
    """All answers, as far as there is room for them, with what finds one among them."""
    runs, spreads = comparison.runs, dict(comparison.disagreements)
    order = [*spreads, *(i for i in range(len(runs[0].predictions)) if i not in spreads)]
    rows: list[dict[str, object]] = []
    size = 0
    for index in order:
        answered = [run.predictions[index] for run in runs]
        row = {
            "place": answered[0].place,
            "prompt": answered[0].question,
            "reference": answered[0].reference,
            "scores": [prompt_score(prediction, comparison.metric) for prediction in answered],
            "answers": [prediction.arms["tuned"].text[:ANSWER_LENGTH] for prediction in answered],
            "spread": spreads.get(index, 0),
        }
        size += len(json.dumps(row))
        if size > BROWSER_BYTES:
            break
        rows.append(row)
    note = f"{len(order) - len(rows):,} prompts with the smallest differences are left out for size."
    return (
        html.heading("Answers side by side")
        + (html.paragraph(note) if len(rows) < len(order) else "")
        + html.script_data(name, json.dumps({"runs": [run.name for run in runs], "rows": rows}))
        + f'<div class="browser" data-of="{name}"><input class="search" placeholder="Search texts">'
        '<label> <input type="checkbox" class="only" checked> only where runs differ</label> '
        '<span class="count"></span><div class="answers"></div></div>'
    )
