"""Is the tuned model better than the base on held-out prompts?"""

import math
import random
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

from finetune import generate, metrics
from finetune.data import Example
from finetune.model import Weights, untouched
from finetune.prepare import Prepared
from finetune.recipe import find_recipe
from finetune.schema import Config, Eval, UserError


@dataclass(frozen=True)
class Arm:
    """One way of answering the held-out prompts: its answers, each answer's scores and their summary by metric."""

    answers: list[generate.Answer]
    scores: list[dict[str, float]]
    summary: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Prompts:
    """What every arm is asked: held-out examples, their tokens (for perplexity), the metrics, and how to decode."""

    examples: list[Example]
    tokenized: Dataset
    metrics: list[str]
    decoding: Eval
    max_new_tokens: int
    seed: int


def choose_prompts(config: Config, prepared: Prepared) -> Prompts:
    """The held-out prompts of a run: at most `eval.max_prompts`, chosen by the seed.

    Raises UserError where a metric cannot score one of their references.
    """
    examples, rows = prepared.splits.test, prepared.rows
    limit = min(config.eval.max_prompts or len(examples), len(examples))
    places = sorted(random.Random(config.seed).sample(range(len(examples)), limit))
    chosen, tokenized = [examples[i] for i in places], rows.whole["test"].select(places)
    longest = math.ceil(1.25 * rows.sizes["train"].longest_answer)
    names = config.data.metrics or find_recipe(config.data).METRICS
    _require_scorable(names, chosen)
    return Prompts(chosen, tokenized, list(names), config.eval, config.eval.max_new_tokens or longest, config.seed)


def compare(
    model: Any, tokenizer: Any, prompts: Prompts, originals: Weights, advance: Callable[[str, int], None]
) -> dict[str, Arm]:
    """The same prompts answered by the untouched base model (`zero_shot`) and by the tuned one.

    Every process answers its share; all of them return all answers. `advance(arm, n)` is told of n answered prompts.
    """
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "zero_shot": lambda: untouched(model, originals),
        "tuned": nullcontext,
    }
    arms = {}
    for name, context in contexts.items():
        with context():
            arms[name] = _judge(model, tokenizer, prompts, partial(advance, name))
    return arms


def _require_scorable(names: list[str], examples: list[Example]) -> None:
    """Raise UserError, before anything is trained, for a metric that cannot score one of the references."""
    answered = [name for name in names if name != "perplexity"]
    for example in examples if answered else []:
        if not example.prompt:
            raise UserError(
                f"{example.place}: plain text has no prompt to answer, so {answered[0]} cannot score it. "
                "Set data.metrics=[perplexity], or choose a recipe with prompts."
            )
        try:
            metrics.score(answered, [example.completion], [example.completion])
        except ValueError as error:
            raise UserError(f"{example.place}: {error}. Choose others with data.metrics.") from error


def _judge(model: Any, tokenizer: Any, prompts: Prompts, advance: Callable[[int], None]) -> Arm:
    started = time.perf_counter()
    answered = [name for name in prompts.metrics if name != "perplexity"]
    answers: list[generate.Answer] = []
    scores: list[dict[str, float]] = [{} for _ in prompts.examples]
    summary: dict[str, float] = {}
    if answered:
        answers = _answer_all(model, tokenizer, prompts, advance)
        references = [example.completion for example in prompts.examples]
        scores, summary = metrics.score(answered, [answer.text for answer in answers], references)
    if "perplexity" in prompts.metrics:
        pairs = _reference_likelihoods(model, prompts.tokenized)
        scores = [s | {"perplexity": metrics.perplexity(*pair)} for s, pair in zip(scores, pairs, strict=True)]
        summary["perplexity"] = metrics.perplexity(sum(nll for nll, _ in pairs), sum(tokens for _, tokens in pairs))
        advance(0 if answered else len(pairs))
    return Arm(answers, scores, {name: summary[name] for name in prompts.metrics}, time.perf_counter() - started)


def _answer_all(model: Any, tokenizer: Any, prompts: Prompts, advance: Callable[[int], None]) -> list[generate.Answer]:
    """The answers to all prompts; this process computes its share of them."""
    state = PartialState()
    mine = range(state.process_index, len(prompts.examples), state.num_processes)
    asked = [prompts.examples[i].prompt for i in mine]
    answers = generate.answer(model, tokenizer, asked, prompts.decoding, prompts.max_new_tokens, prompts.seed, advance)
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
