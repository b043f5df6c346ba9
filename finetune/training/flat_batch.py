"""How is a batch laid out so that no token is computed twice or in vain?

In one sequence without padding: `tokens that all rows begin with | rest of row 0 | rest of row 1 | ...`. In attention,
a rest sees this prefix and itself; the language model's head is applied only where a token carries loss. Loss and
gradients equal those of the padded batch up to rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from finetune.model.shared_prefix_attention import BatchMasks, common_prefix_length
from finetune.training.tokenize import IGNORE_INDEX

Batch = dict[str, Any]  # what a collator makes of rows: tensors by the names of the model's inputs, and counts


def collate_shared_prefix(examples: Sequence[Mapping[str, list[int]]]) -> Batch:
    """Rows of `input_ids` and `labels` -> one flat sequence whose common prefix appears once.

    Yields `input_ids`, `position_ids` and `shift_labels` (each 1 x tokens; the label is that of the *next* token),
    `row_tokens` (rows x longest remainder: where in the flat sequence a row's tokens lie, 0 for padding),
    `flat_tokens` (the inverse: where in the flattened `row_tokens` a token of a remainder lies), `prefix_length`, and
    `real_tokens`, the number of tokens that the rows had before. The `attention_mask` of one element keeps transformers
    from making one of all tokens by all tokens.
    """
    rows = [example["input_ids"] for example in examples]
    targets = [[*example["labels"][1:], IGNORE_INDEX] for example in examples]
    before_loss = (next((i for i, label in enumerate(row) if label != IGNORE_INDEX), len(row) - 1) for row in targets)
    prefix = min(common_prefix_length(rows), *before_loss)
    rest = [len(row) - prefix for row in rows]
    flat = rows[0][:prefix] + [token for row in rows for token in row[prefix:]]
    positions = [*range(prefix), *(prefix + i for length in rest for i in range(length))]
    labels = [IGNORE_INDEX] * prefix + [label for target in targets for label in target[prefix:]]
    inside = torch.arange(max(rest)) < torch.tensor(rest)[:, None]
    row_tokens = torch.zeros(inside.shape, dtype=torch.long)
    row_tokens[inside] = torch.arange(prefix, len(flat))
    return {
        "input_ids": torch.tensor([flat]),
        "position_ids": torch.tensor([positions]),
        "shift_labels": torch.tensor([labels]),
        "labels": torch.tensor([labels]),  # makes Trainer count them over the micro-batches and processes of a step
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "row_tokens": row_tokens,
        "flat_tokens": inside.flatten().nonzero().flatten(),
        "prefix_length": prefix,
        "real_tokens": sum(map(len, rows)),
    }


def count_rows(batch: Batch) -> int:
    """The rows of a flat batch."""
    return int(batch["row_tokens"].shape[0])


def uncollate(batch: Batch) -> list[dict[str, list[int]]]:
    """The rows that a flat batch was made of; the first label of each, which nothing predicts, is left open."""
    prefix, tokens, labels = batch["prefix_length"], batch["input_ids"][0].tolist(), batch["shift_labels"][0].tolist()
    starts = batch["row_tokens"][:, 0].tolist()
    rows = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        targets = labels[:prefix] + labels[start:end]
        rows.append({"input_ids": tokens[:prefix] + tokens[start:end], "labels": [IGNORE_INDEX, *targets[:-1]]})
    return rows


def count_real_tokens(inputs: Batch) -> torch.Tensor | int:
    """The tokens of a batch's rows without padding, a shared prefix counted in each of them."""
    if "real_tokens" in inputs:
        return int(inputs["real_tokens"])
    return inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()


def negative_log_likelihood(model: torch.nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed negative log-likelihood (nats) of a flat batch's labels, and how many labels there are."""
    arguments = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels", "real_tokens")}
    arguments["masks"] = BatchMasks()
    labels = inputs["shift_labels"][0]
    positions = (labels != IGNORE_INDEX).nonzero().flatten()
    count = torch.tensor(len(positions))
    if labels.device.type == "cuda":  # TRL's Triton kernel keeps no logits
        output = model(**arguments, shift_labels=labels[None], fused_lm_head=True, use_cache=False)
        return -output.log_probs.sum(), count
    logits = model(**arguments, logits_to_keep=positions, use_cache=False).logits[0]
    return functional.cross_entropy(logits.float(), labels[positions], reduction="sum"), count
