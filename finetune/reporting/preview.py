"""What will be trained on? The very rows that the trainer reads, token by token, in the terminal and as a page."""

import html
import math

import numpy as np
from rich.table import Table
from rich.text import Text
from trl import SFTConfig

from finetune.data.splits import Splits
from finetune.reporting.console import RunConsole
from finetune.runs.files import write_text
from finetune.training.prepare import PreparedRun
from finetune.training.row_preview import SHOWN, PreviewRow, packing_share, padding_share, preview_rows
from finetune.training.tokenize import TokenizedRows

SHOWN_ON_PAGE = 100
LONGEST = 5
BINS = 10
LOSS_STYLE, CONTEXT_STYLE, CUT_STYLE = "green", "dim", "strike red"


def show_preview(prepared: PreparedRun, screen: RunConsole) -> None:
    """Print a few rows and the figures of all; write many rows and the same figures to `preview.html`."""
    splits, rows, settings = prepared.splits, prepared.rows, prepared.settings
    seen = preview_rows(prepared, SHOWN_ON_PAGE)
    for row in seen[:SHOWN]:
        screen.say(row.place, style="bold")
        screen.say(_as_text(row))
    tables = [_lengths(rows), _figures(rows, settings), _longest(splits, rows)]
    for title, header, cells in tables:
        screen.say(_as_table(title, header, cells))
    page = screen.folder / "preview.html"
    write_text(page, _page(screen.folder.name, prepared, seen, tables))
    screen.say(f"{len(seen)} rows token by token: {page}")


# -- figures ----------------------------------------------------------------------------------------------------------

Figures = tuple[str, list[str], list[list[str]]]
"""A title, the columns' names, and the cells."""


def _lengths(rows: TokenizedRows) -> Figures:
    """A histogram of the lengths of training rows."""
    lengths = [len(row) for row in rows.whole["train"]["input_ids"]]
    width = max(1, math.ceil((max(lengths) - min(lengths) + 1) / BINS))
    starts = range(min(lengths), max(lengths) + 1, width)
    counts, _ = np.histogram(lengths, bins=[*starts, starts[-1] + width])
    bar = 40 / max(counts)
    cells = [
        [f"{start}-{start + width - 1}" if width > 1 else str(start), f"{count:,}", "█" * round(count * bar)]
        for start, count in zip(starts, counts, strict=True)
    ]
    return "Training rows by length", ["tokens", "rows", ""], cells


def _figures(rows: TokenizedRows, settings: SFTConfig) -> Figures:
    cells = [
        [name, f"{size.rows:,}", f"{size.tokens:,}", f"{size.loss_tokens / size.tokens:.1%}", f"{size.truncated:,}"]
        for name, size in rows.sizes.items()
    ]
    batch = settings.per_device_train_batch_size
    packs, room = packing_share(rows, settings)
    packed = f" Packed, {packs:,} rows, {room:.1%} of them room." if packs else ""
    padded = f"{padding_share(rows, settings):.1%} would be padding"
    title = f"Splits. Padded to the longest row of a batch of {batch}, {padded}.{packed}"
    return title, ["split", "rows", "tokens", "with loss", "longer than max_length"], cells


def _longest(splits: Splits, rows: TokenizedRows) -> Figures:
    lengths = [len(row) for row in rows.whole["train"]["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:LONGEST]
    return "Longest training rows", ["row", "tokens"], [[splits.train[i].place, f"{lengths[i]:,}"] for i in order]


def _as_text(row: PreviewRow) -> Text:
    text = Text()
    for i, (piece, loss) in enumerate(zip(row.pieces, row.loss, strict=True)):
        if i in row.starts:
            text.append("\n──────── next row of the pack\n", style="bold yellow")
        text.append(piece, style=LOSS_STYLE if loss else CONTEXT_STYLE)
    if row.cut:
        text.append(" ✂ cut off: ", style="bold red")
        text.append("".join(row.cut), style=CUT_STYLE)
    return text


def _as_table(title: str, header: list[str], cells: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 or not name else "right")
    for row in cells:
        table.add_row(*row)
    return table


# -- page -------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8rem; border-radius: .4rem; }
i { font-style: normal; color: rgb(120, 120, 120); }
b { font-weight: normal; color: rgb(0, 110, 40); background: rgb(214, 245, 220); }
s { color: rgb(180, 0, 0); }
hr { border: 0; border-top: 2px dashed rgb(200, 140, 0); }
td, th { padding: .1rem .8rem; text-align: right; } td:first-child, th:first-child { text-align: left; }
"""


def _page(name: str, prepared: PreparedRun, seen: list[PreviewRow], tables: list[Figures]) -> str:
    splits = prepared.splits
    counts = " · ".join(f"{value:,} {what}" for what, value in splits.counts.items() if value)
    told = [*(f"left out: {one}" for one in splits.bad), *(f"shared: {one}" for one in splits.shared), *prepared.notes]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>What {html.escape(name)} trains on</title><style>{STYLE}</style>",
        f"<h1>What {html.escape(name)} trains on</h1><p>{html.escape(counts)}</p>",
        *(f"<p>{html.escape(line)}</p>" for line in told),
        *(_html_table(*table) for table in tables),
        f"<h2>The first {len(seen)} training rows</h2>",
        "<p><b>Green</b> tokens carry loss, <i>grey</i> ones are context.</p>",
        *(_html_row(row) for row in seen),
    ]
    return "\n".join(parts) + "\n"


def _html_table(title: str, header: list[str], cells: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in cells)
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}{body}</table>"


def _html_row(row: PreviewRow) -> str:
    marked = []
    for i, (piece, loss) in enumerate(zip(row.pieces, row.loss, strict=True)):
        tag = "b" if loss else "i"
        marked.append(("<hr>" if i in row.starts else "") + f"<{tag}>{html.escape(piece)}</{tag}>")
    cut = f" ✂ <s>{html.escape(''.join(row.cut))}</s>" if row.cut else ""
    return f"<h3>{html.escape(row.place)}</h3><pre class=row>{''.join(marked)}{cut}</pre>"
