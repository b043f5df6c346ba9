"""How much is there to do? Steps, tokens, validations and answers, as the trainer and the evaluation count them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import TrainingArguments

from finetune.evaluation.generate import largest_batch, shared_prefix_length
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.training.chat_template import prompt_tokens
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import IGNORE_INDEX_

# Batches that are looked at; a longer run is taken to go on like them.
MOST_BATCHES = 2000
Batch = dict[str, Any]


@dataclass(frozen=True)
class AnswerWorkload:
    """The prompts of one process that are answered together, sorted by length, and how long the answers may become."""

    prompts: list[list[int]]
    batch_size: int
    # Tokens that all prompts of a batch begin with.
    prefix: int
    longest: int
    new_tokens: int
    # The lengths of the references, in tokens.
    references: list[int]


@dataclass(frozen=True)
class Workload:
    """One process's share of a run; `cells` are the tokens that are computed, padding included, prefixes once."""

    steps: int
    epochs: float
    rows_per_step: int
    samples: int
    tokens: int
    cells: int
    # The batches that need most memory, and one of middling size.
    largest: list[Batch]
    typical: Batch
    validations: int
    validation_cells: int
    largest_validation: Batch | None
    saves: int
    # What zero-shot prompts ask, and each draw of few-shot ones.
    answers: AnswerWorkload | None
    few_shot: list[AnswerWorkload]
    # Of what shows forgetting: passages in tokens, and questions.
    passages: int
    questions: int


def measure_workload(trainer: Any, prepared: PreparedRun, prompts: Prompts, general: dict[str, Prompts]) -> Workload:
    """What `trainer`, whose model needs no contents, will do, and what the `prompts` and the `general` ones ask."""
    args = trainer.args
    per_epoch = len(trainer.get_train_dataloader())
    updates = max(math.ceil(per_epoch / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
    whole, rest = divmod(steps, updates)
    count = whole * per_epoch + min(rest * args.gradient_accumulation_steps, per_epoch)
    seen = list(islice(_batches(trainer), min(count, MOST_BATCHES)))
    scale = count / len(seen)
    by_size = sorted(seen, key=_cells)
    longest_loss = max(seen, key=_loss_tokens)
    validation = list(trainer.get_eval_dataloader()) if args.eval_strategy != "no" else []
    samples = [_rows(batch) for batch in seen]
    return Workload(
        steps=steps,
        epochs=steps / updates,
        rows_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        samples=round(sum(samples) * scale * args.world_size),
        tokens=round(sum(map(_tokens, seen)) * scale * args.world_size),
        cells=round(sum(map(_cells, seen)) * scale),
        largest=[by_size[-1], *([longest_loss] if longest_loss is not by_size[-1] else [])],
        typical=by_size[len(by_size) // 2],
        validations=_times(args.eval_strategy, args.eval_steps, steps, updates),
        validation_cells=sum(map(_cells, validation)),
        largest_validation=max(validation, key=_cells, default=None),
        saves=_times(args.save_strategy, args.save_steps, steps, updates),
        answers=_answers(trainer.model, prepared, prompts, prompts.zero_shot, args),
        few_shot=[
            found for draw in prompts.few_shot if (found := _answers(trainer.model, prepared, prompts, draw, args))
        ],
        passages=sum(map(len, general["passages"].zero_shot.tokenized["input_ids"])) if general else 0,
        questions=len(general["questions"].examples) if "questions" in general else 0,
    )


def _batches(trainer: Any) -> Iterator[Batch]:
    """The batches of training in their order, epoch after epoch."""
    loader, epoch = trainer.get_train_dataloader(), 0
    while True:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def _times(strategy: Any, every: float | None, steps: int, updates: int) -> int:
    """How often something happens in a run of so many steps, `updates` of them in an epoch."""
    if strategy == "epoch":
        return math.ceil(steps / updates)
    if strategy != "steps" or not every:
        return 0
    return steps // max(1, math.ceil(every * steps) if every < 1 else int(every))


def _answers(
    model: Any, prepared: PreparedRun, prompts: Prompts, draw: PromptSet, args: TrainingArguments
) -> AnswerWorkload | None:
    if not any(name != "perplexity" for name in prompts.metrics):
        return None
    mine = range(args.process_index, len(draw.examples), args.world_size)
    tokens = sorted((prompt_tokens(draw.examples[i].prompt, prepared.tokenizer) for i in mine), key=len)
    longest = max(map(len, tokens))
    size = prompts.decoding.batch_size or largest_batch(model, longest + prompts.max_new_tokens)
    last = tokens[-((len(tokens) - 1) % size + 1) :] if len(tokens) < size else tokens[-size:]
    references = [sum(label != IGNORE_INDEX_ for label in draw.tokenized[i]["labels"]) for i in mine]
    prefix = shared_prefix_length(model, last, prompts.max_new_tokens)
    return AnswerWorkload(tokens, min(size, len(tokens)), prefix, longest, prompts.max_new_tokens, references)


def _cells(batch: Batch) -> int:
    return int(batch["input_ids"].numel())


def _rows(batch: Batch) -> int:
    if "row_tokens" in batch:
        return len(batch["row_tokens"])
    if "position_ids" in batch:  # packed: each row begins at position 0
        return batch["position_ids"].numel() - int(batch["position_ids"].count_nonzero())
    return len(batch["input_ids"])


def _tokens(batch: Batch) -> int:
    if "real_tokens" in batch:
        return int(batch["real_tokens"])
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else _cells(batch)


def _loss_tokens(batch: Batch) -> int:
    labels = batch["shift_labels"] if "shift_labels" in batch else batch["labels"]
    return int((labels != IGNORE_INDEX_).sum())
