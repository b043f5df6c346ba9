"""What do the answers score, by how much do the arms differ, and what is the verdict?"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from statistics import fmean
from typing import Any

from finetune.data.splits import Example
from finetune.evaluation.answer_cache import Reply
from finetune.evaluation.answers import Arm
from finetune.evaluation.metrics import CORPUS, LENIENT, MEANS, SPELLED, perplexity, score_answers
from finetune.evaluation.prompts import Prompts
from finetune.evaluation.statistics import (
    corpus_difference,
    corpus_interval,
    corpus_value,
    mean_difference,
    mean_interval,
)
from finetune.evaluation.verdict import decide_verdict
from finetune.runs.predictions import Answered, Prediction
from finetune.runs.result import (
    ArmResult,
    Difference,
    EvaluationResult,
    Forgetting,
    HarnessScore,
    Interval,
    Verdict,
    name_arm,
)


def score_arms(
    prompts: Prompts, arms: dict[str, Arm]
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Difference]]]:
    """By arm and metric the value with its interval, and tuned minus the arm."""
    scored = {name: _ScoredArm(prompts, arm) for name, arm in arms.items()}
    tuned, others = scored["tuned"], {name: arm for name, arm in scored.items() if name != "tuned"}
    scores = {name: {metric: arm.interval(metric) for metric in prompts.metrics} for name, arm in scored.items()}
    return scores, {name: {key: tuned.minus(arm, key) for key in prompts.metrics} for name, arm in others.items()}


def headline_score(prompts: Prompts, replies: list[Reply]) -> float:
    """The headline metric's value of the replies."""
    return _ScoredArm(prompts, Arm(replies, 0.0, reused=False, precision="")).value(prompts.metrics[0])


def describe_evaluation(
    prompts: Prompts, arms: dict[str, Arm], forgetting: Forgetting | None, harness: dict[str, dict[str, HarnessScore]]
) -> EvaluationResult:
    """The scores and the verdict, by the first metric; the verdict says what the model forgot, if it did."""
    (scores, differences), metric = score_arms(prompts, arms), prompts.metrics[0]
    base = {name: scores[name][metric] for name in arms if not name.startswith("tuned")}
    verdict = None
    if base:
        gains = {name: differences[name][metric] for name in base}
        verdict = decide_verdict(metric, base, gains, prompts.decoding.shots)
        notes = [*_form_note(prompts, scores, differences, verdict), *_cut_notes(prompts, arms, verdict)]
        notes += [forgetting.sentence] if forgetting and forgetting.forgot else []
        verdict = replace(verdict, sentence=f"{'. '.join([verdict.sentence, *notes])}.")
    return EvaluationResult(
        split=prompts.split,
        prompts=len(prompts.examples),
        metric=metric,
        max_new_tokens=prompts.max_new_tokens,
        precision=arms["tuned"].precision,
        shots=prompts.decoding.shots if prompts.few_shot else 0,
        arms={name: _arm_result(arm, scores[name]) for name, arm in arms.items()},
        differences=differences,
        retention=forgetting,
        verdict=verdict,
        harness=harness,
        best_prompt=prompts.choice,
    )


def _form_note(
    prompts: Prompts,
    scores: dict[str, dict[str, Interval]],
    differences: dict[str, dict[str, Difference]],
    verdict: Verdict,
) -> Iterator[str]:
    """Where one arm is better by the form of its answers alone: a sentence with the difference without it."""
    lenient = LENIENT.get(prompts.metrics[0])
    if lenient not in prompts.metrics or verdict.kind not in ("tuning_wins", "tuning_hurts"):
        return
    base = {verdict.against: scores[verdict.against][lenient]}
    difference = differences[verdict.against][lenient]
    if decide_verdict(lenient, base, {verdict.against: difference}).kind != verdict.kind:
        interval = f"{difference.mean:z.2f} [{difference.low:z.2f}, {difference.high:z.2f}]"
        yield f"The form alone decides: by {SPELLED[lenient]} the difference is {interval}"


def _cut_notes(prompts: Prompts, arms: dict[str, Arm], verdict: Verdict) -> Iterator[str]:
    """How many answers of the arms compared were cut off at the limit, where any were."""
    for name in (verdict.against, "tuned"):
        cut = sum(not reply.answer.finished for reply in arms[name].replies if reply.answer)
        if cut:
            arm = name_arm(name, prompts.decoding.shots)
            count = f"{cut:,} of {len(prompts.examples):,} {arm} answers {'was' if cut == 1 else 'were'}"
            yield f"{count} cut off at eval.max_new_tokens={prompts.max_new_tokens}"


def _arm_result(arm: Arm, scores: dict[str, Interval]) -> ArmResult:
    unfinished = sum(not reply.answer.finished for reply in arm.replies if reply.answer)
    return ArmResult(scores, unfinished, round(arm.seconds, 2), arm.reused)


def list_predictions(prompts: Prompts, arms: dict[str, Arm]) -> list[Prediction]:
    """For each held-out prompt its reference and what each arm replied, with the scores."""
    sets = prompts.arms()
    scored = {name: _ScoredArm(prompts, arm).predictions(sets[name].demonstrations) for name, arm in arms.items()}
    return [
        Prediction(
            example.place, example.prompt, example.completion, {name: replies[i] for name, replies in scored.items()}
        )
        for i, example in enumerate(prompts.examples)
    ]


class _ScoredArm:
    """An arm's replies and their scores, by prompt."""

    def __init__(self, prompts: Prompts, arm: Arm) -> None:
        self.prompts, self.arm = prompts, arm
        references = [example.completion for example in prompts.examples]
        tokens = [reply.likelihood[1] for reply in arm.replies if reply.likelihood]
        self.expected: dict[str, list[Any]] = dict.fromkeys(CORPUS, references) | {"perplexity": tokens}
        self.answers = [reply.answer.text if reply.answer else "" for reply in arm.replies]
        self.scores = score_answers(prompts.metrics, self.answers, references)

    def value(self, metric: str) -> float:
        if metric in MEANS:
            return fmean(self._values(metric))
        return corpus_value(metric, self._values(metric), self.expected[metric])

    def interval(self, metric: str) -> Interval:
        if metric in MEANS:
            return mean_interval(self._values(metric), self.prompts.seed)
        return corpus_interval(metric, self._values(metric), self.expected[metric], self.prompts.seed)

    def minus(self, other: "_ScoredArm", metric: str) -> Difference:
        pair, seed = (self._values(metric), other._values(metric)), self.prompts.seed
        if metric in MEANS:
            return mean_difference(*pair, seed)
        return corpus_difference(metric, *pair, self.expected[metric], seed)

    def predictions(self, demonstrations: list[list[Example]]) -> list[Answered]:
        places = [[example.place for example in shown] for shown in demonstrations] or repeat(None)
        return [*map(_answered, self.arm.replies, self.scores, places)]

    def _values(self, metric: str) -> list[Any]:
        """What the metric is computed from, by prompt: scores, answers, or log-likelihoods."""
        if metric in MEANS:
            return [scores[metric] for scores in self.scores]
        if metric == "perplexity":
            return [reply.likelihood and reply.likelihood[0] for reply in self.arm.replies]
        return self.answers


def _answered(reply: Reply, scores: dict[str, float], demonstrations: list[str] | None) -> Answered:
    answer, (nll, tokens) = reply.answer, reply.likelihood or (None, None)
    text, finished = (answer.text, answer.finished) if answer else (None, None)
    if reply.likelihood:
        scores = scores | {"perplexity": perplexity(*reply.likelihood)}
    return Answered(scores, text, finished, nll, tokens, demonstrations)
