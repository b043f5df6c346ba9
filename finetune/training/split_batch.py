"""How is a batch computed in several parts, where all of it is too much for the memory?"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from finetune.training.flat_batch import Batch, collate_shared_prefix, count_rows, uncollate

# Where rows begin that lie end to end, for flash attention, which finds it from the positions where they are left out.
BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """At most so many batches with the rows of this one, in their order, each of about the same number of rows."""
    starts = _row_starts(batch)
    count = len(starts) - 1
    parts = min(parts, count)
    edges = [round(count * part / parts) for part in range(parts + 1)]
    if parts == 1:
        yield batch
        return
    rows = uncollate(batch) if "row_tokens" in batch else []
    for first, end in pairwise(edges):
        if rows:
            device = batch["input_ids"].device
            part = collate_shared_prefix(rows[first:end])
            yield {key: value.to(device) if torch.is_tensor(value) else value for key, value in part.items()}
        else:
            cut = {key: _cut(value, batch, starts[first], starts[end]) for key, value in batch.items()}
            yield {key: value for key, value in cut.items() if key not in BOUNDARIES}


def _row_starts(batch: Batch) -> list[int]:
    """Where rows begin, in their order, and behind the last: in rows, or in tokens where these lie end to end."""
    if "row_tokens" in batch:
        return list(range(count_rows(batch) + 1))
    rows, tokens = batch["input_ids"].shape
    if rows == 1 and "position_ids" in batch:
        return [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), tokens]
    return list(range(rows + 1))


def _cut(value: Any, batch: Batch, start: int, end: int) -> Any:
    rows, tokens = batch["input_ids"].shape
    if not torch.is_tensor(value) or value.dim() < 2:
        return value
    along = 1 if rows == 1 and value.shape[:2] == (1, tokens) else 0
    return value.narrow(along, start, end - start)
