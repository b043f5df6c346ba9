"""How do training, scores and answers look as figures? Of one run, or of several."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil, floor, isfinite, log10
from typing import Any

from plotly import graph_objects as go

from finetune.runs.predictions import History
from finetune.runs.result import Interval

SettingValues = Sequence[float] | Sequence[str]
"""A setting's value in each of several runs."""

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#eab308", "#6366f1", "#ec4899", "#84cc16")
AXES = {"step": "step", "tokens": "tokens", "train_seconds": "seconds of training"}
# A longer legend stands beside its figure and scrolls.
MOST_BELOW = 5
# From this ratio on, a setting's axis is logarithmic; so many values are marked each.
WIDE, MOST_TICKS = 4, 6
MARGIN = {"l": 55, "r": 15, "t": 45, "b": 45}


def losses(runs: Mapping[str, History], axis: str) -> go.Figure:
    """Training loss (thin) and validation loss (thick, dots) of each run against a column of its history."""
    figure = go.Figure(layout=_layout(f"Loss by {AXES[axis]}", AXES[axis], "loss"))
    for number, (name, history) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        for key, label, line in (("loss", "training", 1), ("eval_loss", "validation", 3)):
            points = [row for row in history if key in row and axis in row]
            figure.add_scatter(
                x=[row[axis] for row in points],
                y=[row[key] for row in points],
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
    figure = go.Figure(layout=_layout("Learning rate", "step", ""))
    points = [row for row in history if "learning_rate" in row]
    figure.add_scatter(x=[row["step"] for row in points], y=[row["learning_rate"] for row in points], mode="lines")
    return figure


def score_intervals(metric: str, scores: Mapping[str, Interval]) -> go.Figure:
    """Scores with their 95 % intervals, one below the other."""
    names, intervals = list(scores), list(scores.values())
    figure = go.Figure(layout=_layout(metric, "", ""))
    figure.add_scatter(
        x=[interval.mean for interval in intervals],
        y=names,
        mode="markers",
        marker={"size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_error_length(interval.high - interval.mean) for interval in intervals],
            "arrayminus": [_error_length(interval.mean - interval.low) for interval in intervals],
        },
    )
    figure.update_layout(yaxis={"autorange": "reversed", "automargin": True}, height=150 + 45 * len(names))
    return figure


def distributions(scores: Mapping[str, Sequence[float]], metric: str) -> go.Figure:
    """How often each run's answers got each score."""
    figure = go.Figure(layout=_layout("Scores of the prompts", metric, "prompts"))
    for number, (name, values) in enumerate(scores.items()):
        figure.add_histogram(x=list(values), name=name, opacity=0.7, marker_color=COLOURS[number % len(COLOURS)])
    figure.update_layout(barmode="group", bargap=0.1)
    return figure


def trial_scores(
    scores: Mapping[int, float], others: Mapping[str, Sequence[int]], metric: str, higher_is_better: bool
) -> go.Figure:
    """The score of each trial by its number, and the best so far; the `others`, by their state, lie at the bottom."""
    figure = go.Figure(layout=_layout("Score by trial", "trial", metric))
    figure.update_xaxes(tickformat="d")
    numbers = sorted(scores)
    values = [scores[number] for number in numbers]
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
    figure = go.Figure(layout=_layout("Settings and score", "", ""))
    figure.add_parcoords(
        dimensions=[*dimensions, {"label": metric, "values": list(scores)}],
        line={"color": list(scores), "colorscale": "Viridis", "showscale": True},
    )
    figure.update_layout(margin={"l": 60, "r": 60, "t": 110, "b": 30})
    return figure


def bars(title: str, values: Mapping[str, float]) -> go.Figure:
    """A bar for each value, the largest on top."""
    order = sorted(values, key=values.__getitem__)
    figure = go.Figure(layout=_layout(title, "", ""))
    figure.add_bar(x=[values[name] for name in order], y=order, orientation="h")
    figure.update_layout(yaxis={"automargin": True}, height=150 + 35 * len(order))
    return figure


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


def _error_length(length: float) -> float:
    """The length of an error bar; none is drawn where an end is unknown."""
    return max(length, 0.0) if isfinite(length) else 0.0


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    grid = {"gridcolor": "rgba(128,128,128,.3)", "zerolinecolor": "rgba(128,128,128,.5)"}
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, **grid},
        "yaxis": {"title": {"text": y}, **grid},
        "margin": MARGIN,
        "colorway": COLOURS,
        "legend": {"orientation": "h", "y": -0.25},
    }
