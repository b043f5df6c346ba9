"""What do the base and the tuned model answer to the held-out prompts?"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from finetune.evaluation import generate
from finetune.evaluation.answer_cache import AnswerCache, Reply, answering_precision
from finetune.evaluation.kept_replies import KeptReplies, open_replies
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.machine.process_memory import fits_below_peak, release_freed_memory
from finetune.model.adapter import Weights, as_base_model
from finetune.model.base import TrainedModel
from finetune.model.tokenizer import end_tokens
from finetune.training.tokenize import IGNORE_INDEX, prompt_tokens, turn_separator

ROWS_KEPT = 16  # references whose likelihoods are kept at a time
LOGIT_BYTES = 2 * 4  # where references are scored: logits as the model gives them, and as numbers of four bytes
INNER_VECTORS, HIDDEN_VECTORS = 3, 4  # alive in a layer for each token, of the feed-forward network's and hidden size
INNER_RATIO = 4  # inner size / hidden size, where a configuration does not name it


@dataclass(frozen=True)
class Arm:
    """One way of answering the held-out prompts."""

    replies: list[Reply]  # by prompt
    seconds: float
    reused: bool  # every reply was computed by an earlier run
    precision: str  # of matrix products


def answer_prompts(
    prompts: Prompts,
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    originals: Weights,
    cache: AnswerCache,
    advance: Callable[[str, int], None],
    show: Callable[[str, Arm], None],
    has_room: Callable[[int], bool] = fits_below_peak,
) -> dict[str, Arm]:
    """The replies of each arm: the base model's, answered by an earlier run or now, and the tuned model's.

    Every process answers its share; all of them return all replies. `advance(arm, n)` is called for n answered
    prompts, `show(name, arm)` for each complete arm; `has_room(n)` says whether n more bytes of memory may be used.
    """
    arms, answered = prompts.arms(), {}
    reply = partial(_reply, model, tokenizer, prompts, cache, advance)
    release_freed_memory()
    size = generate.dequantised_bytes(model)
    room = size and has_room(size + max(_working_bytes(model, prompts)))  # no more than training has needed
    with generate.dequantised(model) if room else nullcontext():
        with as_base_model(model, originals):
            for name, arm in _base_arms(model, tokenizer, prompts, cache, reply, advance):
                answered[name] = arm
                show(name, arm)
        for name in (name for name in arms if name.startswith("tuned")):  # in one order in all processes
            started = time.perf_counter()
            replies = reply(name, arms[name], _request(model, tokenizer, prompts, arms[name]))
            seconds = time.perf_counter() - started
            answered[name] = Arm(replies, seconds, reused=False, precision=answering_precision(model))
            show(name, answered[name])
    return {name: answered[name] for name in arms}


def _working_bytes(model: TrainedModel, prompts: Prompts) -> Iterator[int]:
    """For each prompt set the most that replying holds: a batch's keys, values and activations, or a row's logits."""
    text = model.config.get_text_config()
    inner_size = getattr(text, "intermediate_size", INNER_RATIO * text.hidden_size)
    token_bytes = (INNER_VECTORS * inner_size + HIDDEN_VECTORS * text.hidden_size) * model.dtype.itemsize
    for prompt_set in prompts.arms().values():
        rows = prompt_set.tokenized["input_ids"][:]
        longest = max(map(len, rows))
        size = LOGIT_BYTES * longest * text.vocab_size if prompts.need_likelihoods else 0
        if prompts.need_answers:
            tokens = longest + prompts.max_new_tokens
            batch = min(prompts.decoding.batch_size or generate.largest_batch(model, tokens), len(rows))
            computed = longest - generate.shared_prefix_length(model, rows, prompts.max_new_tokens)
            size = max(size, batch * (generate.cache_bytes(model, tokens) + computed * token_bytes))
        yield size


def _base_arms(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    cache: AnswerCache,
    reply: Callable[[str, PromptSet, dict[str, Any]], list[Reply]],
    advance: Callable[[str, int], None],
) -> Iterator[tuple[str, Arm]]:
    """The base model's arms, each once it is complete; replies that another run is computing are waited for last."""
    arms = {name: prompt_set for name, prompt_set in prompts.arms().items() if not name.startswith("tuned")}
    for wait in (False, True):
        for name, prompt_set in list(arms.items()):
            started = time.perf_counter()
            request = _request(model, tokenizer, prompts, prompt_set)
            recalled = cache.recall(request, partial(reply, name, prompt_set, request), wait)
            if recalled is None:
                continue
            replies, reused = recalled
            if reused:
                advance(name, len(replies))
            del arms[name]
            seconds = 0.0 if reused else time.perf_counter() - started
            yield name, Arm(replies, seconds, reused, answering_precision(model))


def _request(
    model: TrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, prompt_set: PromptSet
) -> dict[str, Any]:
    """All that decides, besides the model, what is replied."""
    decoding = prompts.decoding
    return {
        "prompts": [prompt_tokens(example.prompt, tokenizer) for example in prompt_set.examples if example.prompt],
        "references": prompt_set.tokenized["labels"][:] if prompts.need_likelihoods else None,
        "answered": prompts.need_answers,
        "decoding": [decoding.temperature, decoding.top_p, decoding.top_k, decoding.batch_size],
        "max_new_tokens": prompts.max_new_tokens,
        "seed": prompts.seed if decoding.temperature else None,
        "separator": turn_separator(tokenizer),
        "precision": answering_precision(model),
        "ends": end_tokens(model, tokenizer),
        "processes": PartialState().num_processes,  # each answers a share in batches of its own
    }


def _reply(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    cache: AnswerCache,
    advance: Callable[[str, int], None],
    arm: str,
    prompt_set: PromptSet,
    request: dict[str, Any],
) -> list[Reply]:
    """The model's answers, of which this process computes its share, and how likely it finds the references."""
    count, state = len(prompt_set.examples), PartialState()
    kept = open_replies(cache.kept, model, [cache.base, request], is_base=not arm.startswith("tuned"))
    answers: list[Any] = [None] * count
    likelihoods: list[Any] = [None] * count
    if prompts.need_answers:
        mine = range(state.process_index, count, state.num_processes)
        messages = [prompt_set.examples[i].prompt for i in mine]
        settings = prompts.decoding, prompts.max_new_tokens, prompts.seed, partial(advance, arm)
        generated = generate.generate_answers(model, tokenizer, messages, *settings, kept=kept, tell=cache.tell)
        everyones = dict(gather_object(list(zip(mine, generated, strict=True))))
        answers = [everyones[i] for i in range(count)]
    else:
        advance(arm, count)
    if prompts.need_likelihoods:
        likelihoods = _reference_likelihoods(model, prompt_set.tokenized, kept)
    return [Reply(*pair) for pair in zip(answers, likelihoods, strict=True)]


@torch.no_grad()
def _reference_likelihoods(model: TrainedModel, tokenized: Dataset, kept: KeptReplies) -> list[tuple[float, int]]:
    """For each row the summed negative log-likelihood (nats) of its labels, and their number."""
    model.eval()

    def score(row: Any) -> tuple[float, int]:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        labels = torch.tensor(row["labels"][1:], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        nll = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE_INDEX)
        return nll.item(), int((labels != IGNORE_INDEX).sum())

    def score_all(rows: range) -> list[tuple[float, int]]:
        return [score(tokenized[i]) for i in rows]

    likelihoods: list[tuple[float, int]] = []
    for start in range(0, len(tokenized), ROWS_KEPT):
        rows = range(start, min(start + ROWS_KEPT, len(tokenized)))
        likelihoods += kept.recall("references", rows, partial(score_all, rows))
    return [(nll, count) for nll, count in likelihoods]
