"""How much is there to do? Steps, tokens, validations and answers, as the trainer and the evaluation count them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from transformers import TrainingArguments

from finetune.config.schema import Config
from finetune.evaluation.best_prompt import PromptSearch, list_candidates
from finetune.evaluation.forgetting import choose_general_prompts
from finetune.evaluation.generate import largest_batch, shared_prefix_length
from finetune.evaluation.prompts import Prompts, PromptSet, choose_prompts
from finetune.machine.device import Device
from finetune.training.flat_batch import Batch, count_real_tokens
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import IGNORE_INDEX, prompt_tokens
from finetune.training.trainer import Trainer

# Batches that are looked at; a longer run is taken to go on like them.
MOST_BATCHES = 2000
TYPICAL_BATCHES = 4


@dataclass(frozen=True)
class PlannedRun:
    """All that is known of a run before its model is loaded."""

    config: Config
    prepared: PreparedRun
    machine: Device
    prompts: Prompts
    # Of what shows forgetting: passages and questions.
    general: dict[str, Prompts]
    search: PromptSearch | None


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts that are answered together: how many, and in tokens the longest and what all begin with."""

    rows: int
    longest: int
    prefix: int


@dataclass(frozen=True)
class AnswerWorkload:
    """The prompts that one process answers, sorted by length, in their batches."""

    prompts: list[list[int]]
    batches: list[AnswerBatch]
    # How long an answer may become.
    new_tokens: int
    # The lengths of the references, in tokens.
    references: list[int]

    @property
    def first_batch(self) -> list[list[int]]:
        """The prompts that are answered first: the shortest, and as many as in any batch but the last."""
        return self.prompts[: self.batches[0].rows]


@dataclass(frozen=True)
class Workload:
    """One process's share of a run; token positions are computed ones, padding included, shared prefixes once."""

    steps: int
    epochs: float
    rows_per_step: int
    samples: int
    tokens: int
    token_positions: int
    # The batches that need most memory, and a few of middling size.
    largest: list[Batch]
    typical: list[Batch]
    validations: int
    validation_positions: int
    largest_validation: Batch | None
    # What zero-shot prompts ask, and few-shot ones.
    answers: AnswerWorkload | None
    few_shot: AnswerWorkload | None
    # Of each way of prompting that is tried what it would answer, and how many answers that takes of all.
    candidates: list[AnswerWorkload]
    candidate_answers: int
    # Of what shows forgetting: passages in tokens, and questions.
    passages: int
    questions: int


def plan_prompts(config: Config, prepared: PreparedRun, machine: Device) -> PlannedRun:
    """The run with the prompts that it will answer. Raises UserError for what is wrong with them."""
    prompts, general = choose_prompts(config, prepared), choose_general_prompts(config, prepared)
    return PlannedRun(config, prepared, machine, prompts, general, list_candidates(config, prepared, prompts))


def measure_workload(run: PlannedRun, trainer: Trainer) -> Workload:
    """What `trainer`, whose model needs no contents, will do, and what the prompts ask of it."""
    args, general = trainer.args, run.general
    per_epoch = len(trainer.get_train_dataloader())
    updates = max(math.ceil(per_epoch / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
    whole_epochs, rest = divmod(steps, updates)
    batches = whole_epochs * per_epoch + min(rest * args.gradient_accumulation_steps, per_epoch)
    seen = list(islice(_batches(trainer), min(batches, MOST_BATCHES)))
    scale = batches / len(seen)
    by_size = sorted(seen, key=_positions)
    longest_loss = max(seen, key=_loss_tokens)
    validation = list(trainer.validation_batches()) if args.eval_strategy != "no" else []
    return Workload(
        steps=steps,
        epochs=steps / updates,
        rows_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        samples=round(sum(map(_rows, seen)) * scale * args.world_size),
        tokens=round(int(sum(map(count_real_tokens, seen))) * scale * args.world_size),
        token_positions=round(sum(map(_positions, seen)) * scale),
        largest=[by_size[-1], *([longest_loss] if longest_loss is not by_size[-1] else [])],
        typical=_middle(by_size),
        validations=_count_validations(args, steps, updates),
        validation_positions=sum(map(_positions, validation)),
        largest_validation=max(validation, key=_positions, default=None),
        answers=measure_answers(run, trainer, run.prompts.zero_shot),
        few_shot=measure_answers(run, trainer, few_shot) if (few_shot := run.prompts.few_shot) else None,
        candidates=list(_candidates(run, trainer)),
        candidate_answers=run.search.answers + len(run.prompts.examples) if run.search else 0,
        passages=sum(map(len, general["passages"].zero_shot.tokenized["input_ids"])) if general else 0,
        questions=len(general["questions"].examples) if "questions" in general else 0,
    )


def _candidates(run: PlannedRun, trainer: Trainer) -> Iterator[AnswerWorkload]:
    for candidate in run.search.candidates.values() if run.search else ():
        sets = (measure_answers(run, trainer, prompts) for prompts in (candidate.validation, candidate.test))
        yield from filter(None, sets)


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """The batches of training in their order, epoch after epoch."""
    loader = trainer.get_train_dataloader()
    for epoch in count():
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        yield from loader


def _count_validations(args: TrainingArguments, steps: int, updates: int) -> int:
    """Validations in a run of so many steps, `updates` of them in an epoch."""
    if args.eval_strategy == "epoch":
        return math.ceil(steps / updates)
    if args.eval_strategy != "steps" or not (every := args.eval_steps):
        return 0
    return math.ceil(steps / max(1, math.ceil(every * steps) if every < 1 else int(every)))  # and once at the end


def measure_answers(run: PlannedRun, trainer: Trainer, prompt_set: PromptSet) -> AnswerWorkload | None:
    """What this process answers of the set, in the batches of `generate_answers`; None where nothing is answered."""
    prompts, args = run.prompts, trainer.args
    mine = range(args.process_index, len(prompt_set.examples), args.world_size)
    if not mine or all(name == "perplexity" for name in prompts.metrics):
        return None
    tokens = sorted((prompt_tokens(prompt_set.examples[i].prompt, run.prepared.tokenizer) for i in mine), key=len)
    new_tokens = prompts.max_new_tokens
    size = prompts.decoding.batch_size or largest_batch(trainer.model, len(tokens[-1]) + new_tokens)
    batches = [
        AnswerBatch(len(rows), len(rows[-1]), shared_prefix_length(trainer.model, rows, new_tokens))
        for rows in (tokens[start : start + size] for start in range(0, len(tokens), size))
    ]
    references = [sum(label != IGNORE_INDEX for label in prompt_set.tokenized[i]["labels"]) for i in mine]
    return AnswerWorkload(tokens, batches, new_tokens, references)


def _middle(by_size: list[Batch]) -> list[Batch]:
    start = max(0, (len(by_size) - TYPICAL_BATCHES) // 2)
    return by_size[start : start + TYPICAL_BATCHES]


def _positions(batch: Batch) -> int:
    return int(batch["input_ids"].numel())


def _rows(batch: Batch) -> int:
    if "row_tokens" in batch:
        return len(batch["row_tokens"])
    if "position_ids" in batch:  # packed: each row begins at position 0
        return int((batch["position_ids"] == 0).sum())
    return len(batch["input_ids"])


def _loss_tokens(batch: Batch) -> int:
    labels = batch["shift_labels"] if "shift_labels" in batch else batch["labels"]
    return int((labels != IGNORE_INDEX).sum())
