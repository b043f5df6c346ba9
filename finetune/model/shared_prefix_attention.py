"""How do rows that begin alike attend to a prefix that is computed once?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prefix"  # the name under which transformers finds `attend_shared_prefix`
# Model families whose layers pass tokens to each other through attention alone; a test holds each to the padded batch.
FAMILIES = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})


def common_prefix_length(rows: Sequence[list[int]]) -> int:
    """How many leading tokens all rows share."""
    columns = enumerate(zip(*rows, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, rows)))


def causal_mask(prefix: int, rest: int, window: int | None = None) -> torch.Tensor:
    """1 x 1 x rest x (prefix + rest), True where a remainder's query may look at a key (within `window` back)."""
    query, key = torch.arange(prefix, prefix + rest)[:, None], torch.arange(prefix + rest)
    visible = key <= query if window is None else (key <= query) & (key > query - window)
    return visible[None, None]


def _attend_from_last(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of each row's last token, rows x heads x 1 x size; the result is rows x 1 x heads x size."""
    rows, heads, _, size = query.shape
    # Heads that share keys become queries side by side: repeating keys for each is most of an answer's time on a CPU.
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    attended = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.reshape(rows, 1, heads, size)


def attend_shared_prefix(
    module: torch.nn.Module,
    query: torch.Tensor,  # 1 x heads x tokens x size, as `key` and `value`
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_tokens: torch.Tensor | None = None,
    flat_tokens: torch.Tensor | None = None,
    prefix_length: int = 0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """1 x tokens x heads x size for a flat batch (flat_batch.py); any other batch goes to transformers' own `sdpa`."""
    if row_tokens is None and query.shape[2] == 1 and dropout == 0:
        return _attend_from_last(query, key, value, attention_mask, scaling), None
    if row_tokens is None or flat_tokens is None or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    dtype, on_cpu, groups = query.dtype, query.device.type == "cpu", getattr(module, "num_key_value_groups", 1)
    if on_cpu:
        query, key, value = query.float(), key.float(), value.float()  # the CPU's backward is twice as fast in float32
    rows, longest = row_tokens.shape
    if sliding_window is not None and sliding_window < prefix_length + longest:
        attention_mask = causal_mask(prefix_length, longest, sliding_window).to(query.device)

    def prefix_of(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, :prefix_length]

    def rows_of(states: torch.Tensor) -> torch.Tensor:
        return states[0].index_select(1, row_tokens.flatten()).unflatten(1, (rows, longest)).transpose(0, 1)

    def with_prefix(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix_of(states).expand(rows, -1, -1, -1), rows_of(states)], dim=2)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if groups > 1 and not on_cpu:  # with a mask, CUDA's fast kernels know no groups
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        grouped = groups > 1 and on_cpu
        with torch.autocast(query.device.type, enabled=False):  # it would cast to bfloat16 again
            return functional.scaled_dot_product_attention(
                query, key, value, mask, dropout, scale=scaling, enable_gqa=grouped
            )

    remainders = attend(rows_of(query), with_prefix(key), with_prefix(value), attention_mask)
    flat = remainders.transpose(1, 2).flatten(0, 1).index_select(0, flat_tokens)
    if prefix_length:
        mask = causal_mask(0, prefix_length, sliding_window).to(query.device)
        prefix = attend(prefix_of(query), prefix_of(key), prefix_of(value), mask)
        flat = torch.cat([prefix[0].transpose(0, 1), flat])
    return flat[None].to(dtype), None


def shares_prefixes(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration may be given flat batches."""
    text = config.get_text_config()
    attention = text._attn_implementation  # private: transformers, no public name
    return text.model_type in FAMILIES and attention == ATTENTION


AttentionInterface.register(ATTENTION, attend_shared_prefix)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
