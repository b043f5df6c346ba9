"""How do rows that begin alike attend to a prefix that is computed once?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.bias import CausalBias, causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prefix"  # the name under which transformers finds `attend_shared_prefix`
# Model families whose layers pass tokens to each other through attention alone; a test holds each to the padded batch.
# All others are left to transformers' own attention, `sdpa` or, where a family has none, `eager`.
FAMILIES = frozenset({"gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})

# Arguments that transformers hands on from a model's call and that change nothing here.
PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}  # the mask says the same
WITHOUT_EFFECT = frozenset({"position_ids", "use_cache", "is_causal", "cache_position", "output_attentions"} | PACKED)


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


class BatchMasks:
    """The masks of one batch, each made once, on its device, for all layers."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def causal(self, prefix: int, rest: int, window: int | None, device: torch.device) -> torch.Tensor:
        """See `causal_mask`."""
        key = prefix, rest, window
        if key not in self._made:
            self._made[key] = causal_mask(prefix, rest, window).to(device)
        return self._made[key]


def attend_causally(
    query: torch.Tensor,  # rows x heads x tokens x size
    key: torch.Tensor,  # rows x heads or fewer x tokens and those before them x size, as `value`
    value: torch.Tensor,
    masks: BatchMasks,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    on_cpu: bool = True,
) -> torch.Tensor:
    """Attention of the last tokens of each row to all before them; a dense mask only where no kernel has it built in.

    All three are of one type: float32 on a CPU, whose backward is twice as fast in it, else that of training.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    query, key, value = (states.to(torch.float32 if on_cpu else dtype) for states in (query, key, value))
    rest, total, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    mask: torch.Tensor | None = None
    if window is not None and window < total:
        mask = masks.causal(total - rest, rest, window, query.device)
    elif total > rest:
        mask = masks.causal(total - rest, rest, None, query.device) if on_cpu else causal_lower_right(rest, total)
    dense = mask is not None and not isinstance(mask, CausalBias)
    grouped = groups > 1 and (on_cpu or (not dense and query.dtype != torch.float32))
    if groups > 1 and not grouped:  # with a dense mask, or in float32, CUDA's fast kernels know no groups
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    with torch.autocast(kind, enabled=False):  # it would cast to 16 bits again
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )


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
    masks: BatchMasks | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """1 x tokens x heads x size for a flat batch (flat_batch.py); any other batch goes to transformers' own `sdpa`.

    Raises TypeError for an argument that may change attention and is not known here.
    """
    if unknown := [name for name, given in kwargs.items() if given is not None and name not in WITHOUT_EFFECT]:
        raise TypeError(f"attention with {', '.join(unknown)} is not known to {ATTENTION}")
    if row_tokens is None and query.shape[2] == 1 and dropout == 0:
        return _attend_from_last(query, key, value, attention_mask, scaling), None
    if row_tokens is None or flat_tokens is None or masks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    rows, longest = row_tokens.shape
    on_cpu, dtype = query.device.type == "cpu", query.dtype

    def prefix_of(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, :prefix_length]

    def rows_of(states: torch.Tensor) -> torch.Tensor:
        return states[0].index_select(1, row_tokens.flatten()).unflatten(1, (rows, longest)).transpose(0, 1)

    def with_prefix(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix_of(states).expand(rows, -1, -1, -1), rows_of(states)], dim=2)

    options = masks, scaling, dropout, sliding_window, on_cpu
    remainders = attend_causally(rows_of(query), with_prefix(key), with_prefix(value), *options)
    flat = remainders.transpose(1, 2).flatten(0, 1).index_select(0, flat_tokens)
    if prefix_length:
        prefix = attend_causally(prefix_of(query), prefix_of(key), prefix_of(value), *options)
        flat = torch.cat([prefix[0].transpose(0, 1), flat])
    return flat[None].to(dtype), None


def shares_prefixes(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration may be given flat batches."""
    text = config.get_text_config()
    attention = text._attn_implementation  # private: transformers, no public name
    return text.model_type in FAMILIES and attention == ATTENTION


AttentionInterface.register(ATTENTION, attend_shared_prefix)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
