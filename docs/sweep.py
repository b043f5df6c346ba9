"""Draws docs/sweep.png: the figures of a sweep's page, for the README.

python docs/sweep.py outputs/sweeps/NAME     (needs Chromium)
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from finetune.comparison.compare import Comparison
from finetune.comparison.page import settings_figures
from finetune.comparison.table import ranking_table
from finetune.sweeps.report import history_figure
from finetune.sweeps.sweep_result import SweepResult, read_sweep

BEST = 5  # runs of the ranking


def draw(result: SweepResult) -> go.Figure:
    """Score by trial beside the settings' importance, settings and score below, and the best of the ranking."""
    history, ranked = history_figure(result), result.comparisons[0]
    others = settings_figures(ranked)
    cells = {(1, 1): history, (1, 2): others["importance"], (2, 1): others["parallel_coordinates"]}
    figure = make_subplots(
        3,
        2,
        specs=[[{}, {}], [{"type": "domain", "colspan": 2}, None], [{"type": "table", "colspan": 2}, None]],
        subplot_titles=[drawn.layout.title.text for drawn in cells.values()],
        row_heights=[0.34, 0.4, 0.26],
        vertical_spacing=0.125,
        horizontal_spacing=0.2,
    )
    for (row, column), drawn in cells.items():
        for trace in drawn.data:
            figure.add_trace(trace, row=row, col=column)
    figure.add_trace(_table(ranked), row=3, col=1)
    figure.layout.annotations[2].update(yshift=36)  # above the names of the settings
    figure.update_traces(showlegend=False, selector={"type": "bar"})
    figure.update_traces(line_showscale=False, selector={"type": "parcoords"})  # the last axis is the score
    figure.update_xaxes(tickformat="d", row=1, col=1)
    legend = {"orientation": "h", "x": 0, "y": 0.72}
    margins = {"l": 60, "r": 60, "t": 40, "b": 10}
    return figure.update_layout(template="plotly_white", width=1200, height=860, legend=legend, margin=margins)


def _table(ranked: Comparison) -> go.Table:
    """The best of the ranking, as it is printed."""
    table = ranking_table(ranked, BEST)
    cells = {"values": [*zip(*table.rows, strict=True)], "align": "left", "height": 24}
    return go.Table(header={"values": table.header, "align": "left"}, cells=cells, columnwidth=[1, 1.3, 3, 3.2, 1, 15])


def main() -> None:
    """Draw the sweep that the command line names."""
    figure = draw(read_sweep(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "page.html"
        figure.write_html(page)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1220, "height": 870})
        shown.goto(page.as_uri())
        shown.wait_for_selector(".main-svg")
        shown.screenshot(path=Path(__file__).with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main()
