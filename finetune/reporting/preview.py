"""What will be trained on? The very rows that the trainer reads, token by token, in the terminal and as a page."""

import math

import numpy as np
from rich.text import Text

from finetune.reporting import html
from finetune.reporting.console import RunConsole
from finetune.reporting.tables import Table, to_html, to_rich
from finetune.runs.files import write_text
from finetune.training.prepare import PreparedRun
from finetune.training.row_preview import SHOWN, PreviewRow, packing_share, padding_share, preview_rows

SHOWN_ON_PAGE = 100
LONGEST = 5
BINS = 10
BAR_LENGTH = 40  # characters of the longest bar


def show_preview(prepared: PreparedRun, console: RunConsole) -> None:
    """Print a few rows and the figures of all; write many rows and the same figures to `preview.html`."""
    splits, file = prepared.splits, console.folder / "preview.html"
    shown = preview_rows(prepared, SHOWN_ON_PAGE)
    for row in shown[:SHOWN]:
        console.print(row.place, style="bold")
        console.print(_row_text(row))
    tables = _tables(prepared)
    for table in tables:
        console.print(to_rich(table))
    counts = " · ".join(f"{value:,} {what}" for what, value in splits.counts.items() if value)
    bad, shared = (f"left out: {message}" for message in splits.bad), (f"shared: {pair}" for pair in splits.shared)
    page = html.page(
        f"What {console.folder.name} trains on",
        *map(html.paragraph, [counts, *bad, *shared, *prepared.notes]),
        *map(to_html, tables),
        html.heading(f"The first {len(shown)} training rows"),
        f"<p>{html.span('loss', 'Green')} tokens carry loss, {html.span('context', 'grey')} ones are context.</p>",
        *map(_row_html, shown),
    )
    write_text(file, page)
    console.print(f"{len(shown)} rows token by token: {file}")


def _tables(prepared: PreparedRun) -> list[Table]:
    """A histogram of the lengths of training rows, what each split holds, and the longest training rows."""
    splits, rows, settings = prepared.splits, prepared.rows, prepared.settings
    lengths = [len(row) for row in rows.whole["train"]["input_ids"]]
    width = max(1, math.ceil((max(lengths) - min(lengths) + 1) / BINS))
    starts = range(min(lengths), max(lengths) + 1, width)
    counts, _ = np.histogram(lengths, bins=[*starts, starts[-1] + width])
    bar = BAR_LENGTH / max(counts)
    by_length = [
        [f"{start}-{start + width - 1}" if width > 1 else start, f"{count:,}", "█" * round(count * bar)]
        for start, count in zip(starts, counts, strict=True)
    ]
    by_split = [
        [name, f"{size.rows:,}", f"{size.tokens:,}", f"{size.loss_tokens / size.tokens:.1%}", f"{size.truncated:,}"]
        for name, size in rows.sizes.items()
    ]
    packs, room = packing_share(rows, settings)
    packed = f" Packed, {packs:,} rows, {room:.1%} of them room." if packs else ""
    padded = f"Padded to the longest row of a batch of {settings.per_device_train_batch_size}"
    title = f"Splits. {padded}, {padding_share(rows, settings):.1%} would be padding.{packed}"
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:LONGEST]
    longest = [[splits.train[i].place, f"{lengths[i]:,}"] for i in order]
    return [
        Table("Training rows by length", ["tokens", "rows", ""], by_length, prose=[""]),
        Table(title, ["split", "rows", "tokens", "with loss", "longer than max_length"], by_split),
        Table("Longest training rows", ["row", "tokens"], longest),
    ]


def _row_text(row: PreviewRow) -> Text:
    text = Text()
    for i, (piece, loss) in enumerate(zip(row.pieces, row.loss, strict=True)):
        if i in row.starts:
            text.append("\n──────── next row of the pack\n", style="bold yellow")
        text.append(piece, style="green" if loss else "dim")
    if row.cut:
        text.append(" ✂ cut off: ", style="bold red")
        text.append("".join(row.cut), style="strike red")
    return text


def _row_html(row: PreviewRow) -> str:
    tokens = [html.span("loss" if loss else "context", piece) for piece, loss in zip(row.pieces, row.loss, strict=True)]
    marked = "".join(f"<hr>{token}" if i in row.starts else token for i, token in enumerate(tokens))
    cut = f" ✂ {html.span('cut', ''.join(row.cut))}" if row.cut else ""
    return f'{html.heading(row.place, 3)}<pre class="row">{marked}{cut}</pre>'
