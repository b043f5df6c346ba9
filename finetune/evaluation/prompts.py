"""Which held-out prompts are answered, and with which demonstrations?"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from datasets import Dataset

from finetune.config.schema import Config, Eval
from finetune.data.columns import find_recipe
from finetune.data.splits import Example, Message
from finetune.errors import UserError
from finetune.evaluation.metrics import score_answers
from finetune.training.chat_template import prompt_tokens
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import tokenize_examples


@dataclass(frozen=True)
class PromptSet:
    """The held-out prompts as one draw asks them, their tokens, and the training rows shown in each of them."""

    examples: list[Example]
    tokenized: Dataset
    shown: list[Example]


@dataclass(frozen=True)
class Prompts:
    """What the arms are asked: each prompt as it is and, from one shot on, behind each draw of training rows."""

    zero_shot: PromptSet
    few_shot: list[PromptSet]
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

    def arms(self) -> dict[str, list[PromptSet]]:
        """The draws that each arm answers."""
        base = {"zero_shot": [self.zero_shot], "few_shot": self.few_shot} if self.split == "test" else {}
        tuned = {"tuned": [self.zero_shot], "tuned_few_shot": self.few_shot if self.decoding.tuned_few_shot else []}
        return {name: draws for name, draws in (base | tuned).items() if draws}


def choose_prompts(config: Config, prepared: PreparedRun) -> Prompts:
    """The held-out prompts of a run: at most `eval.max_prompts`, and the draws of `eval.shots` training rows.

    A trial of a search answers validation prompts, the others are of the test rows.
    `data.seed` chooses both. Raises UserError where a metric cannot score a reference, and where the longest prompt
    with its answer does not fit the model's context.
    """
    split = "validation" if config.sweep.on_validation else "test"
    examples, rows = getattr(prepared.splits, split), prepared.rows
    limit = min(config.eval.max_prompts or len(examples), len(examples))
    places = sorted(random.Random(config.data.seed).sample(range(len(examples)), limit))
    zero_shot = PromptSet([examples[i] for i in places], rows.whole[split].select(places), [])
    longest = math.ceil(1.25 * rows.sizes["train"].longest_answer)
    names = config.data.metrics or find_recipe(config.data).METRICS
    _require_scorable(names, zero_shot.examples)
    few_shot = list(_sample_demonstrations(config, prepared, zero_shot.examples)) if split == "test" else []
    max_new_tokens = config.eval.max_new_tokens or longest
    prompts = Prompts(zero_shot, few_shot, list(names), config.eval, max_new_tokens, config.data.seed, split)
    _require_context(prompts, prepared)
    return prompts


def _sample_demonstrations(config: Config, prepared: PreparedRun, examples: list[Example]) -> Iterator[PromptSet]:
    shots, train = config.eval.shots, prepared.splits.train
    if not shots or not examples[0].prompt:  # plain text is not answered, and so needs no example
        return
    if shots > len(train):
        raise UserError(f"eval.shots={shots}: there are only {len(train)} training rows to take examples from.")
    for number in range(config.eval.draws):
        shown = random.Random(f"{config.data.seed}, draw {number}").sample(train, shots)
        asked = [replace(example, prompt=_with_demonstrations(shown, example.prompt)) for example in examples]
        yield PromptSet(asked, tokenize_examples(asked, prepared.tokenizer, prepared.settings, "few-shot"), shown)


def _with_demonstrations(shown: list[Example], prompt: list[Message]) -> list[Message]:
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
            score_answers(answered, [example.completion], [example.completion])
        except ValueError as error:
            raise UserError(f"{example.place}: {error}. Choose others with data.metrics.") from error


def _require_context(prompts: Prompts, prepared: PreparedRun) -> None:
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
