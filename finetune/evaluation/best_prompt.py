"""Which way of prompting the base model is best? Chosen on validation prompts, before the test prompts are answered."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from finetune.config.schema import Config
from finetune.data.splits import Example
from finetune.errors import UserError
from finetune.evaluation.answer_cache import AnswerCache, Reply
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.evaluation.prompts import (
    Prompts,
    PromptSet,
    context_length,
    draw_demonstrations,
    longest_prompt,
    prompt_with,
    require_scorable,
)
from finetune.evaluation.scores import headline_score
from finetune.model.adapter import Weights
from finetune.model.base import TrainedModel
from finetune.runs.result import BestPrompt, PromptRound
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import prompt_tokens

SHOTS = (0, 1, 3, 8)  # that a user would try; eval.shots is tried, too
NGRAMS = (3, 5)  # characters of a term of TF-IDF, which so knows scripts without spaces


@dataclass(frozen=True)
class Candidate:
    """One way of prompting, with the validation prompts and the test prompts as it asks them."""

    validation: PromptSet
    test: PromptSet


@dataclass(frozen=True)
class PromptSearch:
    """The validation prompts as they are, the candidates by name, the cheapest first, and those that do not fit."""

    prompts: Prompts
    candidates: dict[str, Candidate]
    left_out: list[str]

    @property
    def rounds(self) -> list[int]:
        """The validation prompts of each round of successive halving: twice as many as in the one before."""
        halvings = math.ceil(math.log2(len(self.candidates)))
        sizes = [len(self.prompts.examples) >> halving for halving in reversed(range(halvings))]
        return sorted({max(1, size) for size in sizes})

    @property
    def answers(self) -> int:
        """How many validation prompts are answered in all rounds."""
        running, count, before = len(self.candidates), 0, 0
        for size in self.rounds:
            count += running * (size - before)
            running, before = math.ceil(running / 2), size
        return count


def list_candidates(config: Config, prepared: PreparedRun, prompts: Prompts) -> PromptSearch | None:
    """The candidates that fit the model's context, None without `eval.best_prompt` or where no test prompt is asked.

    Raises UserError for plain text, and where no candidate fits.
    """
    if not config.eval.best_prompt or prompts.split != "test":
        return None
    rows, train = prepared.splits.validation, prepared.splits.train
    if not prompts.examples[0].prompt:
        raise UserError("eval.best_prompt=true: plain text has no prompts. Leave it out, or choose another recipe.")
    limit = min(config.eval.max_prompts or len(rows), len(rows))
    numbers = random.Random(config.data.seed).sample(range(len(rows)), limit)
    validation = PromptSet([rows[i] for i in numbers], prepared.rows.whole["validation"].select(numbers), [])
    require_scorable(prompts.metrics, validation.examples)
    counts = sorted(shots for shots in {*SHOTS, config.eval.shots} if shots <= len(train))
    asked, context = [*validation.examples, *prompts.examples], context_length(prepared)
    candidates, left_out = {}, []
    for name, shown, system in _ways(asked, train, counts, config.data.system_candidates, config.data.seed):
        prompted = prompt_with([_with_system(example, system) for example in asked], shown, prepared)
        if context and longest_prompt(prompted.examples, prepared) + prompts.max_new_tokens > context:
            left_out.append(name)
            continue
        candidates[name] = Candidate(prompted.select(range(limit)), prompted.select(range(limit, len(asked))))
    if not candidates:
        raise UserError(
            "eval.best_prompt=true: no way of prompting fits the model's context. Lower eval.max_new_tokens."
        )
    return PromptSearch(replace(prompts, zero_shot=validation, few_shot=None), candidates, left_out)


def _ways(
    examples: list[Example], train: list[Example], counts: list[int], systems: list[str], seed: int
) -> Iterator[tuple[str, list[list[Example]], str]]:
    """Each way of prompting: its name, the demonstrations of each example, and the system prompt, empty for the own."""
    nearest = nearest_demonstrations(examples, train, max(counts))
    for shots in counts:
        drawn = [draw_demonstrations(example, train, shots, seed) for example in examples]
        choices = {"random": drawn, "nearest": [found[len(found) - shots :] for found in nearest]}
        for choice, shown in choices.items() if shots else [("", drawn)]:
            for number, system in enumerate(["", *systems]):
                parts = [f"{shots}-shot", choice, f"system prompt {number}" if number else ""]
                yield ", ".join(filter(None, parts)), shown, system


def nearest_demonstrations(examples: list[Example], train: list[Example], shots: int) -> list[list[Example]]:
    """For each example the training rows whose prompts are most like its own by TF-IDF, the nearest last."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS)
    known = vectorizer.fit_transform([_question(example) for example in train])
    similar = (known @ vectorizer.transform([_question(example)]).T for example in examples)
    orders = (column.toarray()[:, 0].argsort(kind="stable") for column in similar)
    return [[train[i] for i in order[len(order) - shots :]] for order in orders]


def _question(example: Example) -> str:
    """What is asked, without the system prompt; the spaces make a term of the shortest text."""
    return f" {' '.join(message['content'] for message in example.prompt if message['role'] != 'system')} . . "


def _with_system(example: Example, system: str) -> Example:
    if not system:
        return example
    turns = example.prompt[1:] if example.prompt[0]["role"] == "system" else example.prompt
    return replace(example, prompt=[{"role": "system", "content": system}, *turns])


def choose_best_prompt(
    search: PromptSearch | None,
    prompts: Prompts,
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    originals: Weights,
    cache: AnswerCache,
    log: Callable[[str], None],
) -> Prompts:
    """The prompts with a further arm, the candidate that is left by successive halving (Jamieson and Talwalkar 2016).

    The base model answers validation prompts, a few for every candidate, twice as many for the better half, and so on.
    """
    if search is None:
        return prompts
    running, replies, rounds = list(search.candidates), dict[str, list[Reply]](), list[PromptRound]()
    for size in search.rounds:
        done = rounds[-1].prompts if rounds else 0
        sets = {name: search.candidates[name].validation.select(range(done, size)) for name in running}
        asked, silent = replace(search.prompts, candidates=sets), lambda *_: None
        for name, arm in answer_prompts(asked, model, tokenizer, originals, cache, silent, silent).items():
            replies[name] = [*replies.get(name, []), *arm.replies]
        seen = replace(search.prompts, zero_shot=search.prompts.zero_shot.select(range(size)))
        scores = {name: headline_score(seen, replies[name]) for name in running}
        rounds.append(PromptRound(size, scores))
        log(f"  best-prompt: {', '.join(f'{name} {score:.2f}' for name, score in scores.items())} ({size} prompts)")
        sign = -1 if HIGHER_IS_BETTER[prompts.metrics[0]] else 1
        running = sorted(running, key=lambda name: sign * scores[name])[: math.ceil(len(running) / 2)]
    best = search.candidates[running[0]].test
    tokens, tuned_tokens = (_mean_tokens(asked.examples, tokenizer) for asked in (best, prompts.zero_shot))
    first = best.examples[0].prompt[0]
    system = first["content"] if first["role"] == "system" else ""
    choice = BestPrompt(running[0], system, tokens, tuned_tokens, search.answers, rounds, search.left_out)
    return replace(prompts, best_prompt=best, choice=choice)


def _mean_tokens(examples: list[Example], tokenizer: PreTrainedTokenizerBase) -> float:
    return sum(len(prompt_tokens(example.prompt, tokenizer)) for example in examples) / len(examples)
