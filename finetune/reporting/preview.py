"""What will be trained on? The very rows that the trainer reads, token by token, in the terminal and as a page."""

import html
import math
import random
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig
from trl.data_utils import pack_dataset

from finetune.data.splits import Splits
from finetune.reporting.console import Screen
from finetune.runs import folder as checkpoint
from finetune.training import tokenize as tokens
from finetune.training.prepare import Prepared
from finetune.training.tokenize import IGNORE, Rows

SHOWN = 3
SHOWN_ON_PAGE = 100
LONGEST = 5
BINS = 10
LOSS_STYLE, CONTEXT_STYLE, CUT_STYLE = "green", "dim", "strike red"


@dataclass(frozen=True)
class Seen:
    """A row as the trainer reads it: its tokens as texts, which of them carry loss, what is cut off behind, and where
    in it another packed row begins.
    """

    place: str
    pieces: list[str]
    loss: list[bool]
    cut: list[str]
    starts: list[int]


def show(prepared: Prepared, screen: Screen) -> None:
    """Print a few rows and the figures of all; write many rows and the same figures to `preview.html`."""
    splits, rows, settings = prepared.splits, prepared.rows, prepared.settings
    seen = look(prepared, SHOWN_ON_PAGE)
    for row in seen[:SHOWN]:
        screen.say(row.place, style="bold")
        screen.say(_as_text(row))
    tables = [_lengths(rows), _figures(rows, settings), _longest(splits, rows)]
    for title, header, cells in tables:
        screen.say(_as_table(title, header, cells))
    page = screen.folder / "preview.html"
    checkpoint.write(page, _page(screen.folder.name, prepared, seen, tables))
    screen.say(f"{len(seen)} rows token by token: {page}")


def look(prepared: Prepared, count: int) -> list[Seen]:
    """The first `count` training rows in the trainer's own data set."""
    splits, rows, tokenizer, settings = prepared.splits, prepared.rows, prepared.tokenizer, prepared.settings
    limit = None if settings.packing else settings.max_length
    places = tokens.kept(rows.whole["train"], limit)
    seen = []
    for number, row in enumerate(rows.train.select(range(min(count, len(rows.train))))):
        pieces, loss = _pieces(tokenizer, row["input_ids"]), [label != IGNORE for label in row["labels"]]
        if settings.packing:
            starts = _joins(row, number, rows, settings)
            seen.append(Seen(f"pack {number + 1}", pieces, loss, [], starts))
        else:
            index = places[number]
            whole = rows.whole["train"][index]["input_ids"]
            outside = whole[limit:] if limit else []
            seen.append(Seen(splits.train[index].place, pieces, loss, _pieces(tokenizer, outside), []))
    return seen


def _joins(row: dict[str, Any], number: int, rows: Rows, settings: SFTConfig) -> list[int]:
    """Where in a pack other rows begin; TRL's `wrapped` packs are the stream of all rows, cut into equal pieces."""
    if settings.packing_strategy != "wrapped":
        return [int(place) for place in np.cumsum(row["seq_lengths"])[:-1]]
    ends = np.cumsum([len(ids) for ids in rows.whole["train"]["input_ids"]]) - number * (settings.max_length or 0)
    return [int(place) for place in ends if 0 < place < len(row["input_ids"])]


def examples(prepared: Prepared) -> list[dict[str, Any]]:
    """The first rows for a run's page: of each its place, and its text in spans of `context`, `loss` and `cut`."""
    return [{"place": row.place, "spans": _spans(row)} for row in look(prepared, SHOWN)]


def _spans(row: Seen) -> list[tuple[str, str]]:
    kinds = ["loss" if loss else "context" for loss in row.loss] + ["cut"] * len(row.cut)
    pieces = zip(kinds, [*row.pieces, *row.cut], strict=True)
    grouped = groupby(pieces, key=lambda pair: pair[0])
    return [(kind, "".join(piece for _, piece in run)) for kind, run in grouped]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as text; a character that spans tokens stands with the last of them, and nothing is cleaned up.

    A token is decoded behind those before it, as some tokenizers leave out the first one's space.
    """
    pieces: list[str] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        known, text = (str(tokenizer.decode(ids[before:to], clean_up_tokenization_spaces=False)) for to in (start, end))
        if text.endswith("\ufffd") and end < len(ids) and end - start < 64:
            pieces.append("")
            continue
        pieces.append(text[len(known) :])
        before, start = start, end
    return pieces


# -- figures ----------------------------------------------------------------------------------------------------------

Figures = tuple[str, list[str], list[list[str]]]
"""A title, the columns' names, and the cells."""


def _lengths(rows: Rows) -> Figures:
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


def _figures(rows: Rows, settings: SFTConfig) -> Figures:
    cells = [
        [name, f"{size.rows:,}", f"{size.tokens:,}", f"{size.loss_tokens / size.tokens:.1%}", f"{size.truncated:,}"]
        for name, size in rows.sizes.items()
    ]
    batch = settings.per_device_train_batch_size
    packs, room = packing(rows, settings)
    packed = f" Packed, {packs:,} rows, {room:.1%} of them room." if packs else ""
    padded = f"{padding(rows, settings):.1%} would be padding"
    title = f"Splits. Padded to the longest row of a batch of {batch}, {padded}.{packed}"
    return title, ["split", "rows", "tokens", "with loss", "longer than max_length"], cells


def padding(rows: Rows, settings: SFTConfig, draws: int = 200) -> float:
    """The share of padding in batches of training rows drawn at random, each padded to its longest row."""
    batch = settings.per_device_train_batch_size
    whole = rows.whole["train"] if settings.packing else rows.train
    lengths = [len(row) for row in whole["input_ids"]]
    draw = random.Random(0)
    batches = [draw.sample(lengths, min(batch, len(lengths))) for _ in range(draws)]
    return 1 - sum(map(sum, batches)) / sum(max(one) * len(one) for one in batches)


def packing(rows: Rows, settings: SFTConfig) -> tuple[int, float]:
    """How many packs of `max_length` tokens TRL makes of the training rows, and what share of them holds no token."""
    limit = settings.max_length
    if not limit:
        return 0, 0.0
    packs = rows.train
    if not settings.packing:
        whole = rows.train if settings.packing_strategy == "bfd" else rows.whole["train"]
        packs = pack_dataset(whole, limit, settings.packing_strategy)
    return len(packs), 1 - sum(map(len, packs["input_ids"])) / (limit * len(packs))


def _longest(splits: Splits, rows: Rows) -> Figures:
    lengths = [len(row) for row in rows.whole["train"]["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:LONGEST]
    return "Longest training rows", ["row", "tokens"], [[splits.train[i].place, f"{lengths[i]:,}"] for i in order]


# -- terminal ---------------------------------------------------------------------------------------------------------


def _as_text(row: Seen) -> Text:
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


def _page(name: str, prepared: Prepared, seen: list[Seen], tables: list[Figures]) -> str:
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


def _html_row(row: Seen) -> str:
    marked = []
    for i, (piece, loss) in enumerate(zip(row.pieces, row.loss, strict=True)):
        tag = "b" if loss else "i"
        marked.append(("<hr>" if i in row.starts else "") + f"<{tag}>{html.escape(piece)}</{tag}>")
    cut = f" ✂ <s>{html.escape(''.join(row.cut))}</s>" if row.cut else ""
    return f"<h3>{html.escape(row.place)}</h3><pre class=row>{''.join(marked)}{cut}</pre>"
