"""What do the answers score, by how much do the arms differ, and what is the verdict?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.evaluation.answers import Arm
from finetune.evaluation.metrics import PER_PROMPT, perplexity, score_answers
from finetune.evaluation.prompts import Prompts
from finetune.evaluation.statistics import corpus_difference, corpus_interval, mean_difference, mean_interval
from finetune.evaluation.verdict import decide_verdict
from finetune.runs.predictions import Answered, Prediction
from finetune.runs.result import ArmResult, Difference, EvaluationResult, Forgetting, HarnessScore, Interval


@dataclass(frozen=True)
class ArmScores:
    """By arm and metric the value with its interval, and tuned minus the arm."""

    scores: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]


def score_arms(prompts: Prompts, arms: Mapping[str, Arm]) -> ArmScores:
    """Score every arm by every metric; statistics.py says how."""
    scored = {name: _ScoredArm(prompts, arm) for name, arm in arms.items()}
    tuned = scored["tuned"]
    return ArmScores(
        {name: {metric: arm.interval(metric) for metric in prompts.metrics} for name, arm in scored.items()},
        {
            name: {metric: tuned.minus(arm, metric) for metric in prompts.metrics}
            for name, arm in scored.items()
            if arm is not tuned
        },
    )


def describe_evaluation(
    prompts: Prompts,
    arms: Mapping[str, Arm],
    forgetting: Forgetting | None,
    harness: dict[str, dict[str, HarnessScore]],
) -> EvaluationResult:
    """The scores and the verdict, by the first metric; the verdict says what the model forgot, if it did."""
    scored, metric = score_arms(prompts, arms), prompts.metrics[0]
    base = {name: scores[metric] for name, scores in scored.scores.items() if not name.startswith("tuned")}
    verdict = None
    if base:
        differences = {name: scored.differences[name][metric] for name in base}
        verdict = decide_verdict(metric, base, differences, prompts.decoding.shots)
        forgot = [forgetting.sentence] if forgetting and forgetting.forgot else []
        verdict = replace(verdict, sentence=f"{'. '.join([verdict.sentence, *forgot])}.")
    return EvaluationResult(
        split=prompts.split,
        prompts=len(prompts.examples),
        metric=metric,
        max_new_tokens=prompts.max_new_tokens,
        shots=[[example.place for example in sample.demonstrations] for sample in prompts.few_shot],
        arms={name: _arm_result(arm, scored.scores[name]) for name, arm in arms.items()},
        differences=scored.differences,
        retention=forgetting,
        verdict=verdict,
        harness=harness,
    )


def _arm_result(arm: Arm, scores: dict[str, Interval]) -> ArmResult:
    unfinished = sum(not reply.answer.finished for sample in arm.replies for reply in sample if reply.answer)
    return ArmResult(scores, unfinished, round(arm.seconds, 2), arm.reused)


def list_predictions(prompts: Prompts, arms: Mapping[str, Arm]) -> list[Prediction]:
    """For each held-out prompt its reference and what each arm replied, with the scores."""
    scored = {name: _ScoredArm(prompts, arm) for name, arm in arms.items()}
    return [
        Prediction(
            example.place,
            example.prompt,
            example.completion,
            {name: arm.prediction(number) for name, arm in scored.items()},
        )
        for number, example in enumerate(prompts.examples)
    ]


class _ScoredArm:
    """An arm's replies and their scores, by few-shot sample and prompt."""

    def __init__(self, prompts: Prompts, arm: Arm) -> None:
        self.prompts, self.arm = prompts, arm
        self.references = [example.completion for example in prompts.examples]
        self.answers = [[reply.answer.text if reply.answer else "" for reply in sample] for sample in arm.replies]
        self.scores = [score_answers(prompts.metrics, sample, self.references) for sample in self.answers]

    def interval(self, metric: str) -> Interval:
        if metric in PER_PROMPT:
            return mean_interval(self._matrix(metric), self.prompts.seed)
        return corpus_interval(metric, self._matrix(metric), self._corpus_references(metric), self.prompts.seed)

    def minus(self, other: "_ScoredArm", metric: str) -> Difference:
        matrices, seed = (self._matrix(metric), other._matrix(metric)), self.prompts.seed
        if metric in PER_PROMPT:
            return mean_difference(*matrices, seed)
        return corpus_difference(metric, *matrices, self._corpus_references(metric), seed)

    def prediction(self, number: int) -> Answered:
        samples = [self._answered(sample, number) for sample in range(len(self.arm.replies))]
        if len(samples) == 1:
            return samples[0]
        means = {metric: sum(one.scores[metric] for one in samples) / len(samples) for metric in samples[0].scores}
        return Answered(means, draws=samples)

    def _answered(self, sample: int, number: int) -> Answered:
        reply, scores = self.arm.replies[sample][number], self.scores[sample][number]
        nll = tokens = None
        if reply.likelihood:
            nll, tokens = reply.likelihood
            scores = scores | {"perplexity": perplexity(nll, tokens)}
        text, finished = (reply.answer.text, reply.answer.finished) if reply.answer else (None, None)
        return Answered(scores, text, finished, nll, tokens)

    def _matrix(self, metric: str) -> list[list[Any]]:
        """What the metric is computed from, as prompts x samples: scores, answers, or log-likelihoods."""
        samples: list[list[Any]] = self.answers
        if metric in PER_PROMPT:
            samples = [[scores[metric] for scores in sample] for sample in self.scores]
        elif metric == "perplexity":
            samples = [[reply.likelihood and reply.likelihood[0] for reply in sample] for sample in self.arm.replies]
        return [list(row) for row in zip(*samples, strict=True)]

    def _corpus_references(self, metric: str) -> list[Any]:
        if metric != "perplexity":
            return self.references
        return [reply.likelihood[1] for reply in self.arm.replies[0] if reply.likelihood]
