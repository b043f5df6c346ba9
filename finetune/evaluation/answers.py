"""What do the base and the tuned model answer to the held-out prompts?"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn import functional

from finetune.evaluation.answer_cache import AnswerCache, Reply
from finetune.evaluation.generate import (
    Answer,
    cache_bytes,
    dequantised,
    dequantised_bytes,
    generate_answers,
    largest_batch,
    shared_prefix_length,
)
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.machine.process_memory import fits_below_peak, release_freed_memory
from finetune.model.adapter import Weights, as_base_model
from finetune.training.chat_template import prompt_tokens


@dataclass(frozen=True)
class Arm:
    """One way of answering the held-out prompts: its replies by draw and prompt, and what they took.

    reused: every reply was computed by an earlier run.
    """

    replies: list[list[Reply]]
    seconds: float
    reused: bool


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    originals: Weights,
    advance: Callable[[str, int], None],
    show: Callable[[str, Arm], None],
) -> dict[str, Arm]:
    """The replies of each arm: the base model's, answered by an earlier run or now, and the tuned model's.

    Every process answers its share; all of them return all replies. `advance(arm, n)` is told of n answered prompts,
    `show(name, arm)` of each arm that is done.
    """
    arms = prompts.arms()
    base = {name: draws for name, draws in arms.items() if not name.startswith("tuned")}
    with _unpacked(model, prompts):
        with as_base_model(model, originals):
            answered = _answer_base(model, tokenizer, prompts, base, advance, show)
        for name in (name for name in arms if name not in base):  # in one order in all processes
            started = time.perf_counter()
            replies = [_reply(model, tokenizer, prompts, draw, partial(advance, name)) for draw in arms[name]]
            answered[name] = Arm(replies, time.perf_counter() - started, reused=False)
            show(name, answered[name])
    return {name: answered[name] for name in arms}


def _unpacked(model: Any, prompts: Prompts) -> AbstractContextManager[None]:
    """Dequantise 4-bit weights once, where that takes only memory that training has needed."""
    size = dequantised_bytes(model)
    release_freed_memory()
    room = size and fits_below_peak(size + _working_bytes(model, prompts))
    return dequantised(model) if room else nullcontext()


def _working_bytes(model: Any, prompts: Prompts) -> int:
    """The most that replying holds at once: a batch's keys, values and activations, or the logits of a row."""
    draws = [draw.tokenized["input_ids"] for asked in prompts.arms().values() for draw in asked]
    return max(_draw_bytes(model, prompts, rows[:]) for rows in draws)


def _draw_bytes(model: Any, prompts: Prompts, rows: list[list[int]]) -> int:
    text, longest = model.config.get_text_config(), max(map(len, rows))
    logits = 2 * 4 * longest * text.vocab_size if "perplexity" in prompts.metrics else 0
    if not _answered(prompts):
        return int(logits)
    tokens = longest + prompts.max_new_tokens
    together = min(prompts.decoding.batch_size or largest_batch(model, tokens), len(rows))
    layer = (3 * getattr(text, "intermediate_size", 4 * text.hidden_size) + 4 * text.hidden_size) * model.dtype.itemsize
    rest = longest - shared_prefix_length(model, rows, prompts.max_new_tokens)
    return int(max(logits, together * (cache_bytes(model, tokens) + rest * layer)))


def _answer_base(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    base: dict[str, list[PromptSet]],
    advance: Callable[[str, int], None],
    show: Callable[[str, Arm], None],
) -> dict[str, Arm]:
    """The base model's arms; what another run is answering just now is left to it, and asked for again at the end."""
    memory = AnswerCache.of(model)
    asked = [(name, number, draw) for name, draws in base.items() for number, draw in enumerate(draws)]
    found: dict[tuple[str, int], tuple[list[Reply], bool]] = {}
    seconds = dict.fromkeys(base, 0.0)
    arms: dict[str, Arm] = {}
    for (name, number, draw), wait in [*((one, False) for one in asked), *((one, True) for one in asked)]:
        if (name, number) in found:
            continue
        started = time.perf_counter()
        compute = partial(_reply, model, tokenizer, prompts, draw, partial(advance, name))
        known = memory.recall(_depends_on(tokenizer, prompts, draw), compute, wait)
        if known is None:
            continue
        found[name, number] = known
        if known[1]:
            advance(name, len(known[0]))
        else:
            seconds[name] += time.perf_counter() - started
        whole = [found[name, i] for i in range(len(base[name])) if (name, i) in found]
        if len(whole) == len(base[name]):
            arms[name] = Arm([replies for replies, _ in whole], seconds[name], all(reused for _, reused in whole))
            show(name, arms[name])
    return arms


def _depends_on(tokenizer: Any, prompts: Prompts, draw: PromptSet) -> dict[str, Any]:
    """Whatever, besides the model, decides what is replied."""
    decoding = prompts.decoding
    return {
        "prompts": [prompt_tokens(example.prompt, tokenizer) for example in draw.examples if example.prompt],
        "references": draw.tokenized["labels"] if "perplexity" in prompts.metrics else None,
        "answered": _answered(prompts),
        "decoding": [decoding.temperature, decoding.top_p, decoding.top_k, decoding.batch_size],
        "max_new_tokens": prompts.max_new_tokens,
        "seed": prompts.seed if decoding.temperature else None,
        "ends": tokenizer.eos_token_id,
        "processes": PartialState().num_processes,  # each answers a share in batches of its own
    }


def _answered(prompts: Prompts) -> bool:
    return any(name != "perplexity" for name in prompts.metrics)


def _reply(
    model: Any, tokenizer: Any, prompts: Prompts, draw: PromptSet, advance: Callable[[int], None]
) -> list[Reply]:
    """What the model answers to a draw's prompts, and how likely it finds their references."""
    nothing: list[Any] = [None] * len(draw.examples)
    answers = _answer_all(model, tokenizer, prompts, draw, advance) if _answered(prompts) else nothing
    likelihoods = _reference_likelihoods(model, draw.tokenized) if "perplexity" in prompts.metrics else nothing
    if not _answered(prompts):
        advance(len(draw.examples))
    return [Reply(*pair) for pair in zip(answers, likelihoods, strict=True)]


def _answer_all(
    model: Any, tokenizer: Any, prompts: Prompts, draw: PromptSet, advance: Callable[[int], None]
) -> list[Answer]:
    """The answers to all prompts; this process computes its share of them."""
    state = PartialState()
    mine = range(state.process_index, len(draw.examples), state.num_processes)
    asked = [draw.examples[i].prompt for i in mine]
    answers = generate_answers(model, tokenizer, asked, prompts.decoding, prompts.max_new_tokens, prompts.seed, advance)
    everyone = gather_object(list(zip(mine, answers, strict=True)))
    return [answer for _, answer in sorted(everyone, key=lambda pair: pair[0])]


@torch.no_grad()
def _reference_likelihoods(model: Any, tokenized: Dataset) -> list[tuple[float, int]]:
    """For each row the summed negative log-likelihood (nats) of its labels, and their number."""
    model.eval()
    pairs = []
    for row in tokenized:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        labels = torch.tensor(row["labels"][1:], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        nll = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        pairs.append((nll.item(), int((labels != -100).sum())))
    return pairs
