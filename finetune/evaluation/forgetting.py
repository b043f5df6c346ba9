"""Did the model lose its language while it learnt its task?

A small fixed set of general passages and questions (forgetting.yaml) is scored before and after, without the task's
system prompt, so that what is measured is not the task.
"""

from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase

from finetune.config.schema import Config, Eval
from finetune.data.splits import Example
from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.answers import Arm, answer_prompts
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.evaluation.scores import score_arms
from finetune.evaluation.statistics import MAX_P
from finetune.model.adapter import Weights
from finetune.model.base import TrainedModel
from finetune.runs.result import Forgetting, ForgettingPart
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import tokenize_examples

FILE = Path(__file__).with_suffix(".yaml")
ANSWER_TOKENS = 16
# Beyond it is forgetting: the share by which perplexity rises, the share of answers that are lost.
MOST_RISE = MOST_LOST = 0.1


def choose_general_prompts(config: Config, prepared: PreparedRun) -> dict[str, Prompts]:
    """The `passages` and, for a model that is prompted, the `questions`; nothing where `eval.retention` is off."""
    if not config.eval.retention or config.sweep.on_validation:
        return {}
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    passages = [Example([], text, f"{FILE.name}: passage {i}") for i, text in enumerate(content["passages"], 1)]
    questions = [
        Example([{"role": "user", "content": question}], answer, f"{FILE.name}: question {i}")
        for i, (question, answer) in enumerate(content["questions"].items(), 1)
    ]
    decoding = Eval(shots=0, batch_size=config.eval.batch_size)

    def general(examples: list[Example], metric: str) -> Prompts:
        tokenized = tokenize_examples(examples, prepared.tokenizer, prepared.settings, "general")
        return Prompts(PromptSet(examples, tokenized, []), None, [metric], decoding, ANSWER_TOKENS, config.data.seed)

    prompts = {"passages": general(passages, "perplexity")}
    return prompts | ({"questions": general(questions, "contains")} if prepared.splits.train[0].prompt else {})


def answer_general_prompts(
    general: dict[str, Prompts],
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    originals: Weights,
    cache: AnswerCache,
) -> dict[str, dict[str, Arm]]:
    """The replies of the base and the tuned model to the general prompts."""
    return {
        name: answer_prompts(prompts, model, tokenizer, originals, cache, lambda *_: None, lambda *_: None)
        for name, prompts in general.items()
    }


def describe_forgetting(general: dict[str, Prompts], arms: dict[str, dict[str, Arm]]) -> Forgetting | None:
    """The scores before and after training, whether the model forgot beyond doubt, and a sentence."""
    if not general:
        return None
    parts = {name: _part(prompts, arms[name]) for name, prompts in general.items()}
    forgot = any(part.forgot for part in parts.values())
    opinion = "It forgot" if forgot else "It forgot little"
    if not forgot and any(part.suspected for part in parts.values()):
        opinion = "It may have forgotten, not beyond doubt"
    return Forgetting(parts, forgot, f"{opinion}: {' and '.join(map(_sentence, parts.values()))}")


def _part(prompts: Prompts, arms: dict[str, Arm]) -> ForgettingPart:
    (scores, differences), metric = score_arms(prompts, arms), prompts.metrics[0]
    base, tuned, difference = scores["zero_shot"][metric], scores["tuned"][metric], differences["zero_shot"][metric]
    # How much worse the tuned model is, at least (by the interval) and most likely (by the mean), and may be.
    least, likely, allowed = -difference.high, -difference.mean, MOST_LOST
    if metric == "perplexity":
        least, likely, allowed = difference.low, difference.mean, MOST_RISE * base.mean
    forgot = least > allowed and difference.p <= MAX_P
    return ForgettingPart(metric, base, tuned, difference, forgot=bool(forgot), suspected=bool(likely > allowed))


def _sentence(part: ForgettingPart) -> str:
    change, of_text = part.difference, part.metric == "perplexity"
    measured = "perplexity on general text" if of_text else "the share of simple questions answered"
    interval = f"{change.mean:z.2f} [{change.low:z.2f}, {change.high:z.2f}]"
    return f"{measured} went from {part.base.mean:.2f} to {part.tuned.mean:.2f} (difference {interval})"
