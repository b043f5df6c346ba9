"""Draws docs/wandb_panels.png: the README's W&B panels, from the files of offline runs alone.

python docs/wandb_panels.py RUN...     (needs Chromium)
"""

import json
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import sync_playwright
from plotly import graph_objects as go
from plotly.subplots import make_subplots
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # protobuf makes it on import

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444")
PANELS = ("train/loss", "validation/loss")
HEADER_BYTES, BLOCK_BYTES = 7, 32768  # of a LevelDB log, which a .wandb file is after seven bytes
WHOLE, LAST = 1, 4  # kinds of a part: a whole record, or the last part of one


@dataclass(frozen=True)
class LoggedRun:
    """What a run logged, row by row, and its summary."""

    history: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)


def read_records(folder: Path) -> Iterator[Record]:
    """The records in a run's offline files."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, position, parts = file.read_bytes(), HEADER_BYTES, b""
        while position + HEADER_BYTES <= len(content):
            if (left := BLOCK_BYTES - position % BLOCK_BYTES) < HEADER_BYTES:
                position += left
                continue
            _, size, kind = struct.unpack_from("<IHB", content, position)
            parts += content[position + HEADER_BYTES : position + HEADER_BYTES + size]
            position += HEADER_BYTES + size
            if kind in (WHOLE, LAST):
                yield Record.FromString(parts)
                parts = b""


def read_logged(folder: Path) -> LoggedRun:
    """What the run in a folder logged."""
    run = LoggedRun()
    for record in read_records(folder):
        kind = record.WhichOneof("record_type")
        if kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            run.history.append(row) if kind == "history" else run.summary.update(row)
    return run


def draw_panels(runs: dict[str, LoggedRun]) -> go.Figure:
    """Losses against tokens, and every run's score with its interval."""
    metric = next(key.split("/")[2] for run in runs.values() for key in run.summary if key.startswith("evaluation/"))
    score = f"evaluation/tuned/{metric}"
    figure = make_subplots(1, 3, subplot_titles=[*(f"{panel} by tokens" for panel in PANELS), score])
    for number, (name, run) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        for column, panel in enumerate(PANELS, 1):
            points = [row for row in run.history if panel in row]
            x, y = ([row[key] for row in points] for key in ("tokens", panel))
            figure.add_scatter(x=x, y=y, name=name, line_color=colour, showlegend=column == 1, row=1, col=column)
        mean, low, high = (run.summary[score + end] for end in ("", "/low", "/high"))
        whiskers = {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]}
        bar = {"x": [name], "y": [mean], "error_y": whiskers, "marker_color": colour, "showlegend": False}
        figure.add_bar(**bar, row=1, col=len(PANELS) + 1)
    return figure.update_layout(template="plotly_white", width=1200, height=380, legend={"orientation": "h", "y": -0.2})


def main() -> None:
    """Draw the runs that the command line names."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    figure = draw_panels({folder.name: read_logged(folder) for folder in folders})
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        page = Path(temporary) / "page.html"
        figure.write_html(page)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1220, "height": 400})
        shown.goto(page.as_uri())
        shown.wait_for_selector(".main-svg")
        shown.screenshot(path=Path(__file__).with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main()
