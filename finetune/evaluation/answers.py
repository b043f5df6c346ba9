"""What do the base and the tuned model answer to the held-out prompts?"""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn import functional

from finetune.config.schema import Config, Eval, UserError
from finetune.data.columns import find_recipe
from finetune.data.splits import Example, Message
from finetune.evaluation import answer_cache as base_answers
from finetune.evaluation import generate, metrics
from finetune.evaluation.answer_cache import Reply
from finetune.machine import device
from finetune.model.base import Weights, untouched
from finetune.training import tokenize as tokens
from finetune.training.chat_template import prompt_tokens
from finetune.training.prepare import Prepared


@dataclass(frozen=True)
class Draw:
    """The held-out prompts as one draw asks them, their tokens, and the training rows shown in each of them."""

    examples: list[Example]
    tokenized: Dataset
    shown: list[Example]


@dataclass(frozen=True)
class Prompts:
    """What the arms are asked: each prompt as it is and, from one shot on, behind each draw of training rows."""

    zero_shot: Draw
    few_shot: list[Draw]
    metrics: list[str]
    decoding: Eval
    max_new_tokens: int
    seed: int
    # Of which rows they are: test, or validation in a trial of a search, which only the tuned model answers.
    split: str = "test"

    @property
    def examples(self) -> list[Example]:
        """The held-out examples."""
        return self.zero_shot.examples

    def arms(self) -> dict[str, list[Draw]]:
        """The draws that each arm answers."""
        base = {"zero_shot": [self.zero_shot], "few_shot": self.few_shot} if self.split == "test" else {}
        tuned = {"tuned": [self.zero_shot], "tuned_few_shot": self.few_shot if self.decoding.tuned_few_shot else []}
        return {name: draws for name, draws in (base | tuned).items() if draws}


@dataclass(frozen=True)
class Arm:
    """One way of answering the held-out prompts: its replies by draw and prompt, and what they took.

    reused: every reply was computed by an earlier run.
    """

    replies: list[list[Reply]]
    seconds: float
    reused: bool


def choose_prompts(config: Config, prepared: Prepared) -> Prompts:
    """The held-out prompts of a run: at most `eval.max_prompts`, and the draws of `eval.shots` training rows.

    A trial of a search answers validation prompts, the others are of the test rows.
    `data.seed` chooses both. Raises UserError where a metric cannot score a reference, and where the longest prompt
    with its answer does not fit the model's context.
    """
    split = "validation" if config.sweep.on_validation else "test"
    examples, rows = getattr(prepared.splits, split), prepared.rows
    limit = min(config.eval.max_prompts or len(examples), len(examples))
    places = sorted(random.Random(config.data.seed).sample(range(len(examples)), limit))
    zero_shot = Draw([examples[i] for i in places], rows.whole[split].select(places), [])
    longest = math.ceil(1.25 * rows.sizes["train"].longest_answer)
    names = config.data.metrics or find_recipe(config.data).METRICS
    _require_scorable(names, zero_shot.examples)
    few_shot = list(_draw_shots(config, prepared, zero_shot.examples)) if split == "test" else []
    max_new_tokens = config.eval.max_new_tokens or longest
    prompts = Prompts(zero_shot, few_shot, list(names), config.eval, max_new_tokens, config.data.seed, split)
    _require_context(prompts, prepared)
    return prompts


def answer(
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
        with untouched(model, originals):
            answered = _answer_base(model, tokenizer, prompts, base, advance, show)
        for name in (name for name in arms if name not in base):  # in one order in all processes
            started = time.perf_counter()
            replies = [_reply(model, tokenizer, prompts, draw, partial(advance, name)) for draw in arms[name]]
            answered[name] = Arm(replies, time.perf_counter() - started, reused=False)
            show(name, answered[name])
    return {name: answered[name] for name in arms}


# -- prompts ----------------------------------------------------------------------------------------------------------


def _draw_shots(config: Config, prepared: Prepared, examples: list[Example]) -> Iterator[Draw]:
    shots, train = config.eval.shots, prepared.splits.train
    if not shots or not examples[0].prompt:  # plain text is not answered, and so needs no example
        return
    if shots > len(train):
        raise UserError(f"eval.shots={shots}: there are only {len(train)} training rows to take examples from.")
    for number in range(config.eval.draws):
        shown = random.Random(f"{config.data.seed}, draw {number}").sample(train, shots)
        asked = [replace(example, prompt=_show(shown, example.prompt)) for example in examples]
        yield Draw(asked, tokens.tokenize_examples(asked, prepared.tokenizer, prepared.settings, "few-shot"), shown)


def _show(shown: list[Example], prompt: list[Message]) -> list[Message]:
    """The prompt behind the shown examples, each a turn of its own; the prompt's system message stays in front."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns: list[Message] = []
    for example in shown:
        asked = example.prompt[1:] if example.prompt[0]["role"] == "system" else example.prompt
        turns += [*asked, {"role": "assistant", "content": example.completion}]
    return [*system, *turns, *prompt[len(system) :]]


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


def _require_context(prompts: Prompts, prepared: Prepared) -> None:
    context = getattr(prepared.outline.config.get_text_config(), "max_position_embeddings", None)
    for draw in [prompts.zero_shot, *prompts.few_shot]:
        asked = [prompt_tokens(example.prompt, prepared.tokenizer) for example in draw.examples if example.prompt]
        longest = max(map(len, asked), default=0)
        if context and longest and longest + prompts.max_new_tokens > context:
            remedy = "Lower eval.shots (0: no few-shot arm)" if draw.shown else "Lower eval.max_new_tokens"
            raise UserError(
                f"The longest held-out prompt has {longest:,} tokens"
                f"{f' with its {len(draw.shown)} examples' if draw.shown else ''}; with answers of up to "
                f"{prompts.max_new_tokens:,} it does not fit the model's context of {context:,}. {remedy}, or shorten "
                "the rows."
            )


# -- replies ----------------------------------------------------------------------------------------------------------


def _unpacked(model: Any, prompts: Prompts) -> AbstractContextManager[None]:
    """Dequantise 4-bit weights once, where that takes only memory that training has needed."""
    size = generate.unpacked_bytes(model)
    device.release_freed_memory()
    room = size and device.fits_below_peak(size + _working_bytes(model, prompts))
    return generate.unpacked(model) if room else nullcontext()


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
    together = min(prompts.decoding.batch_size or generate.most_prompts(model, tokens), len(rows))
    layer = (3 * getattr(text, "intermediate_size", 4 * text.hidden_size) + 4 * text.hidden_size) * model.dtype.itemsize
    rest = longest - generate.shared_prefix(model, rows, prompts.max_new_tokens)
    return int(max(logits, together * (generate.cache_bytes(model, tokens) + rest * layer)))


def _answer_base(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    base: dict[str, list[Draw]],
    advance: Callable[[str, int], None],
    show: Callable[[str, Arm], None],
) -> dict[str, Arm]:
    """The base model's arms; what another run is answering just now is left to it, and asked for again at the end."""
    memory = base_answers.Memory.of(model)
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


def _depends_on(tokenizer: Any, prompts: Prompts, draw: Draw) -> dict[str, Any]:
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


def _reply(model: Any, tokenizer: Any, prompts: Prompts, draw: Draw, advance: Callable[[int], None]) -> list[Reply]:
    """What the model answers to a draw's prompts, and how likely it finds their references."""
    nothing: list[Any] = [None] * len(draw.examples)
    answers = _answer_all(model, tokenizer, prompts, draw, advance) if _answered(prompts) else nothing
    likelihoods = _reference_likelihoods(model, draw.tokenized) if "perplexity" in prompts.metrics else nothing
    if not _answered(prompts):
        advance(len(draw.examples))
    return [Reply(*pair) for pair in zip(answers, likelihoods, strict=True)]


def _answer_all(
    model: Any, tokenizer: Any, prompts: Prompts, draw: Draw, advance: Callable[[int], None]
) -> list[generate.Answer]:
    """The answers to all prompts; this process computes its share of them."""
    state = PartialState()
    mine = range(state.process_index, len(draw.examples), state.num_processes)
    asked = [draw.examples[i].prompt for i in mine]
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
