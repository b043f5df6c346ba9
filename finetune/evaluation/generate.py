"""What does a model answer to these prompts?"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from finetune.config.schema import Eval
from finetune.data.splits import Message
from finetune.evaluation.kept_replies import KeptReplies
from finetune.machine.process_memory import release_freed_memory
from finetune.model.base import TrainedModel
from finetune.model.shared_prefix_attention import common_prefix_length, shares_prefixes
from finetune.model.tokenizer import end_tokens
from finetune.runs.outcome import is_out_of_memory
from finetune.training.tokenize import prompt_tokens, turn_separator

NOTHING_KEPT = KeptReplies(None)
NEWEST = 16  # the last tokens among which a text is looked for that begins a new turn
ROUND = 16  # tokens after which answers that have ended leave their batch
# Without eval.batch_size: prompts answered at a time, fewer where their keys and values would need more memory.
MOST_PROMPTS, CACHE_BYTES = 100, 4 * 2**30


@dataclass(frozen=True)
class Answer:
    """The text of an answer, its length in tokens, and whether the model ended it by itself."""

    text: str
    tokens: int
    finished: bool


def generate_answers(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[Message]],
    decoding: Eval,
    max_new_tokens: int,
    seed: int,
    advance: Callable[[int], None],
    round_tokens: int = ROUND,
    kept: KeptReplies = NOTHING_KEPT,
    tell: Callable[[str], object] = print,
) -> list[Answer]:
    """Answers in the order of the prompts, computed shortest prompt first; `advance(n)` reports n more of them.

    Those that are `kept` are not computed. Where memory runs out, fewer are computed at a time, which is told.
    """
    tokens = [prompt_tokens(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]))
    config = _generation_config(model, tokenizer, decoding)
    answers: dict[int, Answer] = {}
    model.eval()
    batch_size = decoding.batch_size or largest_batch(model, max(map(len, tokens), default=0) + max_new_tokens)
    parts = 1  # of a batch, each computed by itself

    def answer(batch: list[int]) -> list[dict[str, Any]]:
        nonlocal parts
        while True:
            try:
                torch.manual_seed(seed + order.index(batch[0]))  # whichever batches were computed before
                size = -(-len(batch) // parts)
                pieces = [[tokens[i] for i in batch[start : start + size]] for start in range(0, len(batch), size)]
                return [
                    asdict(one)
                    for piece in pieces
                    for one in generate_batch(model, tokenizer, piece, config, max_new_tokens, round_tokens)
                ]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or parts >= len(batch):
                    raise
            parts *= 2  # outside of the handler, as what is raised holds keys and values
            release_freed_memory()
            tell(f"  out of memory: {-(-batch_size // parts)} prompts are answered at a time instead of {batch_size}")

    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        generated = kept.recall("answers", chosen, partial(answer, chosen))
        answers |= zip(chosen, (Answer(**one) for one in generated), strict=True)
        advance(len(chosen))
    return [answers[i] for i in range(len(prompts))]


def largest_batch(model: TrainedModel, tokens: int) -> int:
    """How many rows of so many tokens are answered at a time; the same on every machine, as rounding depends on it."""
    return max(1, min(MOST_PROMPTS, CACHE_BYTES // cache_bytes(model, tokens)))


def cache_bytes(model: TrainedModel, tokens: int) -> int:
    """The bytes of a row's keys and values."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * tokens * model.dtype.itemsize)  # keys, and values


def _generation_config(model: TrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Eval) -> GenerationConfig:
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return GenerationConfig(
        do_sample=decoding.temperature > 0,
        **(sampling if decoding.temperature > 0 else {}),
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


@torch.no_grad()
def generate_batch(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: GenerationConfig,
    max_new_tokens: int,
    round_tokens: int = ROUND,
) -> list[Answer]:
    """Answers from `shared prefix | padding | rest of the prompt`, the prefix computed once for all rows."""
    longest = max(map(len, prompts))
    limit, prefix = longest + max_new_tokens, shared_prefix_length(model, prompts, max_new_tokens)
    rows = [prompt[:prefix] + [config.pad_token_id] * (longest - len(prompt)) + prompt[prefix:] for prompt in prompts]
    masks = [[1] * prefix + [0] * (longest - len(prompt)) + [1] * (len(prompt) - prefix) for prompt in prompts]
    tokens, mask = torch.tensor(rows, device=model.device), torch.tensor(masks, device=model.device)
    cache = prefix_cache(model, prompts[0][:prefix], len(prompts), limit) if prefix else None
    ends, stop = torch.tensor(config.eos_token_id, device=model.device), turn_separator(tokenizer)
    unfinished = torch.arange(len(prompts), device=model.device)
    # A slice of the hidden states that is not contiguous makes PyTorch copy the head's weight once for every row.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    # transformers lets a model's own settings, such as a penalty on repetition, fill what `config` leaves open.
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    defaults, base.generation_config = base.generation_config, GenerationConfig()
    text = base.config.get_text_config()
    router_logits = getattr(text, "output_router_logits", None)
    if router_logits:  # on in the training of experts
        text.output_router_logits = False
    answers: dict[int, list[int]] = {}
    try:
        while len(unfinished):
            config.max_new_tokens = min(round_tokens if cache else max_new_tokens, limit - tokens.shape[1])
            tokens = model.generate(  # type: ignore[operator]
                input_ids=tokens,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=config,
                stopping_criteria=[_TurnEnd(tokenizer, stop, longest)] if stop else None,
            )
            mask = functional.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1)
            new = tokens[:, longest:]
            ended = torch.isin(new, ends).any(dim=1) | (tokens.shape[1] == limit or cache is None)
            if stop:
                ended |= torch.tensor([stop in tokenizer.decode(row) for row in new], device=model.device)
            answers |= zip(unfinished[ended].tolist(), new[ended].tolist(), strict=True)
            tokens, mask, unfinished = tokens[~ended], mask[~ended], unfinished[~ended]
            if cache and len(unfinished):
                cache.batch_select_indices(~ended)
    finally:
        hook.remove()
        base.generation_config = defaults
        if router_logits:
            text.output_router_logits = router_logits
    return [_decode_answer(tokenizer, answers[i], config.eos_token_id, stop) for i in range(len(prompts))]


@contextmanager
def dequantised(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, on a CPU, 4-bit weights are dequantised once and not for every token; answers stay the same."""
    layers = _quantised_layers(model)
    for layer in layers:
        layer.forward = _multiplication(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def dequantised_bytes(model: torch.nn.Module) -> int:
    """The memory that `dequantised` takes."""
    layers = _quantised_layers(model)
    return sum(layer.weight.quant_state.shape.numel() * layer.compute_dtype.itemsize for layer in layers)


def _quantised_layers(model: torch.nn.Module) -> list[Any]:
    layers: Iterator[Any] = (module for module in model.modules() if isinstance(module, Linear4bit))
    return [layer for layer in layers if layer.weight.device.type == "cpu" and layer.weight.quant_state is not None]


def _multiplication(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a Linear4bit does, with its weight dequantised beforehand."""
    state = copy.copy(layer.weight.quant_state)
    state.dtype = layer.compute_dtype
    weight = dequantize_4bit(layer.weight.data, state)

    def multiply(states: torch.Tensor) -> torch.Tensor:
        bias = None if layer.bias is None else layer.bias.to(weight.dtype)
        return functional.linear(states.to(weight.dtype), weight, bias).to(states.dtype)

    return multiply


def shared_prefix_length(model: TrainedModel, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many leading tokens all prompts share, at least one being left; 0 where the model cannot share them."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)  # which the padding between prefix and rest takes room in
    if not shares_prefixes(text) or (window and window < max(map(len, prompts)) + max_new_tokens):
        return 0
    return common_prefix_length([prompt[:-1] for prompt in prompts])


def prefix_cache(model: TrainedModel, prefix: list[int], rows: int, capacity: int) -> DynamicCache:
    """The keys and values of the prefix, once for each row, with room for `capacity` tokens."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    ids = torch.tensor([prefix], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache


class _PreallocatedLayer(DynamicLayer):
    """Keys and values in buffers for `capacity` tokens; to copy all for each new one is half of the time on a CPU."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before, new = self.get_seq_length(), (key_states, value_states)
        after = before + key_states.shape[-2]
        if not self.buffers:
            self.buffers = tuple(s.new_empty(*s.shape[:2], self.capacity, s.shape[-1]) for s in new)
            held: tuple[Any, ...] = (self.keys, self.values) if before else ()
            for buffer, states in zip(self.buffers, held, strict=False):
                buffer[:, :, :before] = states
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[:, :, before:after] = states
        self.is_initialized = True
        self.keys, self.values = [buffer[:, :, :after] for buffer in self.buffers]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.buffers = ()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.buffers = ()


class _TurnEnd(StoppingCriteria):
    """Ends a row whose new tokens hold a text; transformers' own criterion wants it made of whole tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, prompt_length: int) -> None:
        self.tokenizer, self.text, self.prompt_length = tokenizer, text, prompt_length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        newest = input_ids[:, max(self.prompt_length, input_ids.shape[1] - NEWEST) :]
        ended = [self.text in self.tokenizer.decode(row) for row in newest]
        return torch.tensor(ended, device=input_ids.device)


def _decode_answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int], stop: str) -> Answer:
    """The answer up to an end token or, in a plain prompt, to `stop`, where the next turn would begin."""
    length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    text, finished = str(tokenizer.decode(tokens[:length], skip_special_tokens=True)), length < len(tokens)
    if stop and stop in text:
        length = next(i for i in range(length + 1) if stop in tokenizer.decode(tokens[:i], skip_special_tokens=True))
        text, finished = text.partition(stop)[0], True
    return Answer(text, length, finished)
