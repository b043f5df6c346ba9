"""Draws docs/wandb_panels.png: the README's W&B panels, from the files of offline runs alone.

python docs/wandb_panels.py RUN...     (needs Chromium)
"""

import json
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from plotly import graph_objects as go
from plotly.subplots import make_subplots
from wandb.proto.wandb_internal_pb2 import Record

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444")
PANELS = ("train/loss", "validation/loss")
HEADER, BLOCK = 7, 32768  # of a LevelDB log, which a .wandb file is after seven bytes


def records(folder: Path) -> Iterator[Any]:
    """The records of a run's offline parts."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, position, parts = file.read_bytes(), HEADER, b""
        while position + HEADER <= len(content):
            if (left := BLOCK - position % BLOCK) < HEADER:
                position += left
                continue
            _, size, kind = struct.unpack_from("<IHB", content, position)
            parts += content[position + HEADER : position + HEADER + size]
            position += HEADER + size
            if kind in (1, 4):  # a whole record, or its last part
                yield Record.FromString(parts)
                parts = b""


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the run logged, row by row, and its summary."""
    history, summary = [], {}
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            history.append(row) if kind == "history" else summary.update(row)
    return history, summary


def draw(runs: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]) -> go.Figure:
    """Losses against tokens, and every arm's score with its interval."""
    metric = next(key.split("/")[2] for _, summary in runs.values() for key in summary if key.startswith("evaluation/"))
    score = f"evaluation/tuned/{metric}"
    figure = make_subplots(1, 3, subplot_titles=[*(f"{panel} by tokens" for panel in PANELS), score])
    for number, (name, (history, summary)) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        for column, panel in enumerate(PANELS, 1):
            points = [row for row in history if panel in row]
            x, y = ([row[key] for row in points] for key in ("tokens", panel))
            figure.add_scatter(x=x, y=y, name=name, line_color=colour, showlegend=column == 1, row=1, col=column)
        mean, low, high = (summary[score + end] for end in ("", "/low", "/high"))
        whiskers = {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]}
        figure.add_bar(
            x=[name], y=[mean], error_y=whiskers, marker_color=colour, showlegend=False, row=1, col=len(PANELS) + 1
        )
    return figure.update_layout(template="plotly_white", width=1200, height=380, legend={"orientation": "h", "y": -0.2})


def main() -> None:
    """Draw the runs that the command line names."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    figure = draw({folder.name: read(folder) for folder in folders})
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page = Path(place) / "page.html"
        figure.write_html(page)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1220, "height": 400})
        shown.goto(page.as_uri())
        shown.wait_for_selector(".main-svg")
        shown.screenshot(path=Path(__file__).with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main()
