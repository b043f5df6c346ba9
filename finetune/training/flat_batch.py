"""How is a batch computed with nothing computed twice and nothing for nothing?

The rows of a batch usually begin alike: the same system prompt, the same instruction. Such a prefix is laid out once,
followed by each row's own remainder, in one flat sequence without padding:

    prefix | rest of row 0 | rest of row 1 | ...

All linear layers see just these tokens. Attention lets each remainder see the prefix and itself, and the language
model's head is applied only where a token carries loss. Loss and gradients equal those of the padded batch up to
rounding; what changes is that padding, repeated prefixes and unused logits cost nothing.
"""

from typing import Any

import torch
from torch.nn import functional

from finetune.model.shared_prefix_attention import causal_mask

IGNORE_INDEX = -100


class SharedPrefixCollator:
    """Rows of `input_ids` and `labels` -> one flat sequence whose common prefix appears once.

    Yields `input_ids`, `position_ids` and `shift_labels` (each 1 x tokens; the label is that of the *next* token),
    `row_tokens` (rows x longest remainder: where in the flat sequence a row's tokens lie, 0 for padding),
    `flat_tokens` (the inverse: where in the flattened `row_tokens` a token of a remainder lies), `prefix_length`, and
    a causal `attention_mask` (1 x 1 x longest remainder x prefix and longest remainder). `real_tokens` counts the
    tokens of the rows as they were, prefix included in each.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [example["input_ids"] for example in examples]
        targets = [[*example["labels"][1:], IGNORE_INDEX] for example in examples]
        prefix = _prefix_length(rows, targets)
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
            "attention_mask": causal_mask(prefix, max(rest)),
            "row_tokens": row_tokens,
            "flat_tokens": inside.flatten().nonzero().flatten(),
            "prefix_length": prefix,
            "real_tokens": sum(map(len, rows)),
        }


def _prefix_length(rows: list[list[int]], targets: list[list[int]]) -> int:
    """How many leading tokens all rows share, ending before the first token that predicts a label."""
    bounds = [
        next((i for i, label in enumerate(target) if label != IGNORE_INDEX), len(target) - 1) for target in targets
    ]
    length = 0
    while length < min(bounds) and all(row[length] == rows[0][length] for row in rows):
        length += 1
    return length


def negative_log_likelihood(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed negative log-likelihood (nats) of a flat batch's labels, and how many labels there are."""
    given = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels", "real_tokens")}
    labels = inputs["shift_labels"][0]
    where = (labels != IGNORE_INDEX).nonzero().flatten()
    if labels.device.type == "cuda":  # TRL's Triton kernel keeps no logits
        output = model(**given, shift_labels=labels[None], fused_lm_head=True, use_cache=False)
        return -output.log_probs.sum(), torch.tensor(len(where))
    logits = model(**given, logits_to_keep=where, use_cache=False).logits[0]
    return functional.cross_entropy(logits.float(), labels[where], reduction="sum"), torch.tensor(len(where))
