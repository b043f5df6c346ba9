"""Did the model lose its language while it learnt its task?

A small fixed set of general passages and questions (forgetting.yaml) is scored before and after. The passages are read
as plain text and the questions asked without the task's system prompt, so that what is measured is not the task.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from finetune.config.schema import Config, Eval
from finetune.data.splits import Example
from finetune.evaluation.answers import Arm, answer_prompts
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.evaluation.statistics import MAX_P
from finetune.evaluation.verdict import ArmScores, score_arms
from finetune.model.adapter import Weights
from finetune.training.prepare import PreparedRun
from finetune.training.tokenize import tokenize_examples

FILE = Path(__file__).with_suffix(".yaml")
ANSWER_TOKENS = 16
# What is forgetting: perplexity that rises by more than this share of the base's, answers lost by more than this share.
MOST_RISE = 0.1
MOST_LOST = 0.1


def choose_general_prompts(config: Config, prepared: PreparedRun) -> dict[str, Prompts]:
    """The `passages` and, for a model that is prompted, the `questions`; nothing where `eval.retention` is off."""
    if not config.eval.retention or config.sweep.on_validation:
        return {}
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    place = FILE.name
    passages = [Example([], text, f"{place}: passage {number}") for number, text in enumerate(content["passages"], 1)]
    questions = [
        Example([{"role": "user", "content": question}], answer, f"{place}: question {number}")
        for number, (question, answer) in enumerate(content["questions"].items(), 1)
    ]
    decoding = Eval(shots=0, batch_size=config.eval.batch_size)

    def ask(examples: list[Example], metric: str) -> Prompts:
        tokenized = tokenize_examples(examples, prepared.tokenizer, prepared.settings, "general")
        return Prompts(PromptSet(examples, tokenized, []), [], [metric], decoding, ANSWER_TOKENS, config.data.seed)

    asked = {"passages": ask(passages, "perplexity")}
    return asked | ({"questions": ask(questions, "contains")} if prepared.splits.train[0].prompt else {})


def answer_general_prompts(
    model: Any, tokenizer: Any, asked: dict[str, Prompts], originals: Weights
) -> dict[str, dict[str, Arm]]:
    """The replies of the base and the tuned model to all that is asked."""
    return {
        name: answer_prompts(model, tokenizer, prompts, originals, _ignore, _ignore) for name, prompts in asked.items()
    }


def describe_forgetting(asked: dict[str, Prompts], answered: dict[str, dict[str, Arm]]) -> dict[str, Any] | None:
    """What result.json says about forgetting: scores before and after, whether it is beyond doubt, and a sentence."""
    found = {name: score_arms(prompts, answered[name]) for name, prompts in asked.items()}
    if not found:
        return None
    parts = {name: _part(judgement, asked[name].metrics[0]) for name, judgement in found.items()}
    forgot = any(part["forgot"] for part in parts.values())
    return parts | {"forgot": forgot, "sentence": _sentence(parts, forgot)}


def _part(judgement: ArmScores, metric: str) -> dict[str, Any]:
    base, tuned = (judgement.scores[arm][metric] for arm in ("zero_shot", "tuned"))
    apart = judgement.differences["zero_shot"][metric]
    # How much worse the tuned model is than may be, at least (by the interval) and most likely (by the mean).
    rise = MOST_RISE * base.mean
    least, likely = (apart.low, apart.mean) if metric == "perplexity" else (-apart.high, -apart.mean)
    allowed = rise if metric == "perplexity" else MOST_LOST
    return {"metric": metric, "base": asdict(base), "tuned": asdict(tuned), "difference": asdict(apart)} | {
        "forgot": bool(least > allowed and apart.p <= MAX_P),
        "suspected": bool(likely > allowed),
    }


def _sentence(parts: dict[str, Any], forgot: bool) -> str:
    told = []
    for name, part in parts.items():
        what = "perplexity on general text" if name == "passages" else "the share of simple questions answered"
        apart = part["difference"]
        told.append(
            f"{what} went from {part['base']['mean']:.2f} to {part['tuned']['mean']:.2f} "
            f"(difference {apart['mean']:z.2f} [{apart['low']:z.2f}, {apart['high']:z.2f}])"
        )
    suspected = any(part["suspected"] for part in parts.values())
    opinion = "It forgot" if forgot else "It may have forgotten, not beyond doubt" if suspected else "It forgot little"
    return f"{opinion}: {' and '.join(told)}"


def _ignore(*_: Any) -> None:
    pass
