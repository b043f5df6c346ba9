"""How do training, scores and answers look as figures? Of one run, or of several."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, cycle
from math import ceil, floor, isfinite, log10
from typing import Any

from plotly import graph_objects as go

from finetune.runs.predictions import History
from finetune.runs.result import Interval

SettingValues = Sequence[float] | Sequence[str]  # a setting's value in each of several runs
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#eab308", "#6366f1", "#ec4899", "#84cc16")
AXES = {"step": "step", "tokens": "tokens", "train_seconds": "seconds of training"}
MOST_BELOW = 5  # runs; a longer legend stands beside its figure and scrolls
WIDE = 4  # the ratio from which on a setting's axis is logarithmic
MOST_TICKS = 6  # so many of its values are marked each


def losses(runs: Mapping[str, History], axis: str) -> go.Figure:
    """Training loss (thin) and validation loss (thick, dots) of each run against a column of its history."""
    figure = _figure(f"Loss by {AXES[axis]}", AXES[axis], "loss")
    for colour, (name, history) in zip(cycle(COLOURS), runs.items(), strict=False):
        for key, label, line in (("loss", "training", 1), ("eval_loss", "validation", 3)):
            figure.add_scatter(
                **_points(history, axis, key),
                name=f"{name} {label}" if len(runs) > 1 else label,
                mode="lines+markers" if line > 1 else "lines",
                line={"color": colour, "width": line},
                opacity=1.0 if line > 1 else 0.5,
                legendgroup=name,
            )
    if len(runs) > MOST_BELOW:
        figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1}, height=600)
    return figure


def learning_rate(history: History) -> go.Figure:
    """The learning rate by step."""
    return _figure("Learning rate", "step").add_scatter(**_points(history, "step", "learning_rate"), mode="lines")


def score_intervals(metric: str, scores: Mapping[str, Interval]) -> go.Figure:
    """Scores with their 95 % intervals, one below the other; no bar is drawn to an end that is unknown."""
    intervals = scores.values()
    lengths = ([one.high - one.mean for one in intervals], [one.mean - one.low for one in intervals])
    above, below = ([max(length, 0.0) if isfinite(length) else 0.0 for length in side] for side in lengths)
    figure = _figure(metric).add_scatter(
        x=[interval.mean for interval in intervals],
        y=list(scores),
        mode="markers",
        marker={"size": 10},
        error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below},
    )
    return figure.update_layout(yaxis={"autorange": "reversed", "automargin": True}, height=150 + 45 * len(scores))


def distributions(scores: Mapping[str, Sequence[float]], metric: str) -> go.Figure:
    """How often each run's answers got each score."""
    figure = _figure("Scores of the prompts", metric, "prompts")
    for colour, (name, values) in zip(cycle(COLOURS), scores.items(), strict=False):
        figure.add_histogram(x=list(values), name=name, opacity=0.7, marker_color=colour)
    return figure.update_layout(barmode="group", bargap=0.1)


def trial_scores(
    scores: Mapping[int, float], others: Mapping[str, Sequence[int]], metric: str, higher_is_better: bool
) -> go.Figure:
    """The score of each trial by its number, and the best so far; the `others`, by their state, lie at the bottom."""
    figure = _figure("Score by trial", "trial", metric).update_xaxes(tickformat="d")
    numbers, values = zip(*sorted(scores.items()), strict=True)
    best = list(accumulate(values, max if higher_is_better else min))
    figure.add_scatter(x=numbers, y=values, name="complete", mode="markers", marker={"size": 10})
    figure.add_scatter(x=numbers, y=best, name="best so far", mode="lines", line={"shape": "hv"})
    bottom = min(values) - 0.1 * (max(values) - min(values) or 1.0)
    for state, trials in others.items():
        marker = {"symbol": "x", "size": 9}
        figure.add_scatter(x=list(trials), y=[bottom] * len(trials), name=state, mode="markers", marker=marker)
    return figure


def parallel_coordinates(settings: Mapping[str, SettingValues], scores: Sequence[float], metric: str) -> go.Figure:
    """One line for each run through its settings to its score; settings that are no numbers get a position each."""
    dimensions = [_dimension(name, values) for name, values in settings.items()]
    figure = _figure("Settings and score").add_parcoords(
        dimensions=[*dimensions, {"label": metric, "values": list(scores)}],
        line={"color": list(scores), "colorscale": "Viridis", "showscale": True},
    )
    return figure.update_layout(margin={"l": 60, "r": 60, "t": 110, "b": 30})


def bars(title: str, values: Mapping[str, float]) -> go.Figure:
    """A bar for each value, the largest on top."""
    order = sorted(values, key=values.__getitem__)
    figure = _figure(title).add_bar(x=[values[name] for name in order], y=order, orientation="h")
    return figure.update_layout(yaxis={"automargin": True}, height=150 + 35 * len(order))


def _points(history: History, x: str, y: str) -> dict[str, list[float]]:
    rows = [row for row in history if x in row and y in row]
    return {"x": [row[x] for row in rows], "y": [row[y] for row in rows]}


def _dimension(name: str, values: SettingValues) -> dict[str, Any]:
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        positions = [texts.index(str(value)) for value in values]
        return {"label": name, "values": positions, "tickvals": list(range(len(texts))), "ticktext": texts}
    numbers = [value for value in values if not isinstance(value, str)]
    low, high = min(numbers), max(numbers)
    if low <= 0 or high < WIDE * low:
        return {"label": name, "values": numbers}
    ticks = sorted(set(numbers))
    if len(ticks) > MOST_TICKS:
        marks = (factor * 10.0**power for power in range(floor(log10(low)), ceil(log10(high))) for factor in (1, 2, 5))
        ticks = [mark for mark in marks if low <= mark <= high]
    labels = {"tickvals": list(map(log10, ticks)), "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"label": name, "values": list(map(log10, numbers)), **labels}


def _figure(title: str, x: str = "", y: str = "") -> go.Figure:
    """An empty figure with the names of its axes."""
    grid = {"gridcolor": "rgba(128,128,128,.3)", "zerolinecolor": "rgba(128,128,128,.5)"}
    layout = {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, **grid},
        "yaxis": {"title": {"text": y}, **grid},
        "margin": {"l": 55, "r": 15, "t": 45, "b": 45},
        "colorway": COLOURS,
        "legend": {"orientation": "h", "y": -0.25},
    }
    return go.Figure(layout=layout)
