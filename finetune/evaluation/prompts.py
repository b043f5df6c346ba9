"""Which held-out prompts are answered, and with which demonstrations?"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from datasets import Dataset

from finetune.config.schema import Config, Eval
from finetune.data.columns import find_recipe
from finetune.data.splits import Example, Message
from finetune.errors import UserError
from finetune.evaluation.metrics import LENIENT, score_answers
from finetune.runs.result import BestPrompt
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import prompt_tokens, tokenize_examples

# Room for an answer: a multiple of the longest training answer, and at least so many tokens more than that, as a model
# that is not tuned says more than is asked for.
ANSWER_ROOM, MORE_TOKENS = 1.25, 32


@dataclass(frozen=True)
class PromptSet:
    """Held-out prompts, their tokens, and the demonstrations (training rows) that stand before each, if any do."""

    examples: list[Example]
    tokenized: Dataset
    demonstrations: list[list[Example]]

    def select(self, numbers: range) -> "PromptSet":
        """Those prompts alone."""
        shown = [self.demonstrations[i] for i in numbers] if self.demonstrations else []
        return PromptSet([self.examples[i] for i in numbers], self.tokenized.select(numbers), shown)


@dataclass(frozen=True)
class Prompts:
    """What the arms answer: each prompt as it is and, from one shot on, behind demonstrations of its own."""

    zero_shot: PromptSet
    few_shot: PromptSet | None
    metrics: list[str]
    decoding: Eval
    max_new_tokens: int
    seed: int
    split: str = "test"  # or validation, in a trial of a search, which only the tuned model answers
    best_prompt: PromptSet | None = None
    choice: BestPrompt | None = None  # how that was chosen
    candidates: dict[str, PromptSet] | None = None  # what the base model alone answers, to choose one of them

    @property
    def examples(self) -> list[Example]:
        return self.zero_shot.examples

    @property
    def need_answers(self) -> bool:
        """Whether a metric scores answers; perplexity scores references."""
        return any(name != "perplexity" for name in self.metrics)

    @property
    def need_likelihoods(self) -> bool:
        return "perplexity" in self.metrics

    def arms(self) -> dict[str, PromptSet]:
        """What each arm answers; the names of the tuned model's arms begin with `tuned`."""
        if self.candidates is not None:
            return self.candidates
        base = {"zero_shot": self.zero_shot, "few_shot": self.few_shot, "best_prompt": self.best_prompt}
        tuned = {"tuned": self.zero_shot, "tuned_few_shot": self.few_shot if self.decoding.tuned_few_shot else None}
        arms = base | tuned if self.split == "test" else tuned
        return {name: prompt_set for name, prompt_set in arms.items() if prompt_set}


def choose_prompts(config: Config, prepared: PreparedRun) -> Prompts:
    """A run's held-out prompts and their demonstrations; raises UserError for prompts that cannot be scored, or fit."""
    split = "validation" if config.sweep.on_validation else "test"
    examples, rows = getattr(prepared.splits, split), prepared.rows
    limit = min(config.eval.max_prompts or len(examples), len(examples))
    numbers = sorted(random.Random(config.data.seed).sample(range(len(examples)), limit))
    zero_shot = PromptSet([examples[i] for i in numbers], rows.whole[split].select(numbers), [])
    metrics = with_lenient(config.data.metrics or find_recipe(config.data).METRICS)
    require_scorable(metrics, zero_shot.examples)
    few_shot = _choose_few_shot(config, prepared, zero_shot.examples) if split == "test" else None
    longest = rows.sizes["train"].longest_answer
    max_new_tokens = config.eval.max_new_tokens or max(math.ceil(ANSWER_ROOM * longest), longest + MORE_TOKENS)
    prompts = Prompts(zero_shot, few_shot, metrics, config.eval, max_new_tokens, config.data.seed, split)
    _require_context(prompts, prepared)
    return prompts


def with_lenient(metrics: Iterable[str]) -> list[str]:
    """The metrics, those that judge the form each followed by the one that does not."""
    pairs = ((name, LENIENT.get(name)) for name in metrics)
    return list(dict.fromkeys(name for pair in pairs for name in pair if name))


def _choose_few_shot(config: Config, prepared: PreparedRun, examples: list[Example]) -> PromptSet | None:
    shots, train = config.eval.shots, prepared.splits.train
    if not shots or not examples[0].prompt:  # plain text is not answered, and so needs no demonstrations
        return None
    if shots > len(train):
        raise UserError(f"eval.shots={shots}: there are only {len(train)} training rows to take examples from.")
    return prompt_with(
        examples, [draw_demonstrations(example, train, shots, config.data.seed) for example in examples], prepared
    )


def draw_demonstrations(example: Example, train: list[Example], shots: int, seed: int) -> list[Example]:
    """So many training rows at random, others for each prompt; the same for a prompt whichever others there are."""
    return random.Random(f"{seed}, {example.prompt}").sample(train, shots)


def prompt_with(examples: list[Example], demonstrations: list[list[Example]], prepared: PreparedRun) -> PromptSet:
    """The examples, each prompt behind its demonstrations."""
    pairs = zip(examples, demonstrations, strict=True)
    prompted = [replace(example, prompt=_with_demonstrations(shown, example.prompt)) for example, shown in pairs]
    tokenized = tokenize_examples(prompted, prepared.tokenizer, prepared.settings, "few-shot")
    return PromptSet(prompted, tokenized, demonstrations)


def _with_demonstrations(demonstrations: list[Example], prompt: list[Message]) -> list[Message]:
    """The prompt behind the demonstrations, each a turn of its own; the prompt's system message stays in front."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns: list[Message] = []
    for example in demonstrations:
        question = example.prompt[1:] if example.prompt[0]["role"] == "system" else example.prompt
        turns += [*question, {"role": "assistant", "content": example.completion}]
    return [*system, *turns, *prompt[len(system) :]]


def require_scorable(metrics: list[str], examples: list[Example]) -> None:
    """Raise UserError, before anything is trained, for a metric that cannot score one of the references."""
    of_answers = [name for name in metrics if name != "perplexity"]
    for example in examples if of_answers else []:
        if not example.prompt:
            raise UserError(
                f"{example.place}: plain text has no prompt to answer, so {of_answers[0]} cannot score it. "
                "Set data.metrics=[perplexity], or choose a recipe with prompts."
            )
        try:
            score_answers(of_answers, [example.completion], [example.completion])
        except ValueError as error:
            raise UserError(f"{example.place}: {error}. Choose others with data.metrics.") from error


def _require_context(prompts: Prompts, prepared: PreparedRun) -> None:
    context = context_length(prepared)
    for prompt_set in filter(None, (prompts.zero_shot, prompts.few_shot)):
        longest = longest_prompt(prompt_set.examples, prepared)
        shots = prompts.decoding.shots if prompt_set is prompts.few_shot else 0
        if context and longest and longest + prompts.max_new_tokens > context:
            remedy = "Lower eval.shots (0: no few-shot arm)" if shots else "Lower eval.max_new_tokens"
            raise UserError(
                f"The longest held-out prompt has {longest:,} tokens{f' with its {shots} examples' if shots else ''}; "
                f"with answers of up to {prompts.max_new_tokens:,} it does not fit the model's context of "
                f"{context:,}. {remedy}, or shorten the rows."
            )


def longest_prompt(examples: list[Example], prepared: PreparedRun) -> int:
    """The tokens of the longest prompt; 0 where there is none."""
    questions = [example.prompt for example in examples if example.prompt]
    return max((len(prompt_tokens(question, prepared.tokenizer)) for question in questions), default=0)


def context_length(prepared: PreparedRun) -> int | None:
    """The tokens that the model can read and write in all; None where nothing limits them."""
    length: int | None = getattr(prepared.meta_model.config.get_text_config(), "max_position_embeddings", None)
    return length
