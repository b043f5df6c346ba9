"""Which rows does the trainer read, token by token?"""

import random
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig
from trl.data_utils import pack_dataset

from finetune.runs.result import ExampleSpans
from finetune.secrets import pieces_without_secrets
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import IGNORE_INDEX, TokenizedRows, rows_with_loss

SHOWN = 3
REPLACEMENT = "\ufffd"  # what a decoder writes for a character of which tokens are missing
MOST_TOKENS_OF_CHARACTER = 64


@dataclass(frozen=True)
class PreviewRow:
    """A row as the trainer reads it."""

    place: str
    pieces: list[str]  # its tokens as texts
    loss: list[bool]  # which of them carry loss
    cut: list[str]  # what is cut off behind
    starts: list[int]  # where in it another packed row begins


def preview_rows(prepared: PreparedRun, count: int) -> list[PreviewRow]:
    """The first `count` training rows in the trainer's own data set."""
    splits, rows, tokenizer, settings = prepared.splits, prepared.rows, prepared.tokenizer, prepared.settings
    limit = None if settings.packing else settings.max_length
    trained = rows_with_loss(rows.whole["train"], limit)
    shown = []
    for number, row in enumerate(rows.train.select(range(min(count, len(rows.train))))):
        pieces, loss = token_texts(tokenizer, row["input_ids"]), [label != IGNORE_INDEX for label in row["labels"]]
        if settings.packing:
            shown.append(PreviewRow(f"pack {number + 1}", pieces, loss, [], _row_starts(row, number, rows, settings)))
        else:
            index = trained[number]
            cut = rows.whole["train"][index]["input_ids"][limit:] if limit else []
            shown.append(PreviewRow(splits.train[index].place, pieces, loss, token_texts(tokenizer, cut), []))
    return shown


def _row_starts(pack: dict[str, list[int]], number: int, rows: TokenizedRows, settings: SFTConfig) -> list[int]:
    """Where in a pack other rows begin; TRL's `wrapped` packs are the stream of all rows, cut into equal pieces."""
    if settings.packing_strategy != "wrapped":
        return [int(start) for start in np.cumsum(pack["seq_lengths"])[:-1]]
    ends = np.cumsum([len(ids) for ids in rows.whole["train"]["input_ids"]]) - number * (settings.max_length or 0)
    return [int(start) for start in ends if 0 < start < len(pack["input_ids"])]


def example_spans(prepared: PreparedRun) -> list[ExampleSpans]:
    """The first rows, for a run's page."""
    examples = []
    for row in preview_rows(prepared, SHOWN):
        kinds = ["loss" if loss else "context" for loss in row.loss] + ["cut"] * len(row.cut)
        grouped = groupby(zip(kinds, [*row.pieces, *row.cut], strict=True), key=itemgetter(0))
        spans = [(kind, "".join(piece for _, piece in group)) for kind, group in grouped]
        examples.append(ExampleSpans(row.place, spans))
    return examples


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as text, without secrets; a character of several tokens stands with the last of them."""
    # A token is decoded behind those before it, as some tokenizers leave out the first one's space.
    pieces: list[str] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        prior, text = (str(tokenizer.decode(ids[before:to], clean_up_tokenization_spaces=False)) for to in (start, end))
        if text.endswith(REPLACEMENT) and end < len(ids) and end - start < MOST_TOKENS_OF_CHARACTER:
            pieces.append("")
            continue
        pieces.append(text[len(prior) :])
        before, start = start, end
    return pieces_without_secrets(pieces)


def padding_share(rows: TokenizedRows, settings: SFTConfig, samples: int = 200) -> float:
    """The share of padding in batches of training rows drawn at random, each padded to its longest row."""
    whole = rows.whole["train"] if settings.packing else rows.train
    lengths = [len(row) for row in whole["input_ids"]]
    size, generator = min(settings.per_device_train_batch_size, len(lengths)), random.Random(0)
    batches = [generator.sample(lengths, size) for _ in range(samples)]
    return 1 - sum(map(sum, batches)) / sum(max(drawn) * len(drawn) for drawn in batches)


def packing_share(rows: TokenizedRows, settings: SFTConfig) -> tuple[int, float]:
    """How many packs of `max_length` tokens TRL makes of the training rows, and what share of them holds no token."""
    limit = settings.max_length
    if not limit:
        return 0, 0.0
    packs = rows.train
    if not settings.packing:
        whole = rows.train if settings.packing_strategy == "bfd" else rows.whole["train"]
        packs = pack_dataset(whole, limit, settings.packing_strategy)
    return len(packs), 1 - sum(map(len, packs["input_ids"])) / (limit * len(packs))
