"""What do the answers score, by how much do the arms differ, and what is the verdict?"""

from dataclasses import replace
from typing import Any

from finetune.evaluation.answer_cache import Reply
from finetune.evaluation.answers import Arm
from finetune.evaluation.metrics import CORPUS, PER_PROMPT, perplexity, score_answers
from finetune.evaluation.prompts import Prompts
from finetune.evaluation.statistics import corpus_difference, corpus_interval, mean_difference, mean_interval
from finetune.evaluation.verdict import decide_verdict
from finetune.runs.predictions import Answered, Prediction
from finetune.runs.result import ArmResult, Difference, EvaluationResult, Forgetting, HarnessScore, Interval


def score_arms(
    prompts: Prompts, arms: dict[str, Arm]
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Difference]]]:
    """By arm and metric the value with its interval, and tuned minus the arm."""
    scored = {name: _ScoredArm(prompts, arm) for name, arm in arms.items()}
    tuned, others = scored["tuned"], {name: arm for name, arm in scored.items() if name != "tuned"}
    scores = {name: {metric: arm.interval(metric) for metric in prompts.metrics} for name, arm in scored.items()}
    return scores, {name: {key: tuned.minus(arm, key) for key in prompts.metrics} for name, arm in others.items()}


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
        forgot = [forgetting.sentence] if forgetting and forgetting.forgot else []
        verdict = replace(verdict, sentence=f"{'. '.join([verdict.sentence, *forgot])}.")
    return EvaluationResult(
        split=prompts.split,
        prompts=len(prompts.examples),
        metric=metric,
        max_new_tokens=prompts.max_new_tokens,
        shots=[[example.place for example in sample.demonstrations] for sample in prompts.few_shot],
        arms={name: _arm_result(arm, scores[name]) for name, arm in arms.items()},
        differences=differences,
        retention=forgetting,
        verdict=verdict,
        harness=harness,
    )


def _arm_result(arm: Arm, scores: dict[str, Interval]) -> ArmResult:
    unfinished = sum(not reply.answer.finished for sample in arm.replies for reply in sample if reply.answer)
    return ArmResult(scores, unfinished, round(arm.seconds, 2), arm.reused)


def list_predictions(prompts: Prompts, arms: dict[str, Arm]) -> list[Prediction]:
    """For each held-out prompt its reference and what each arm replied, with the scores."""
    scored, predictions = {name: _ScoredArm(prompts, arm) for name, arm in arms.items()}, []
    for number, example in enumerate(prompts.examples):
        replies = {name: arm.prediction(number) for name, arm in scored.items()}
        predictions.append(Prediction(example.place, example.prompt, example.completion, replies))
    return predictions


class _ScoredArm:
    """An arm's replies and their scores, by few-shot sample and prompt."""

    def __init__(self, prompts: Prompts, arm: Arm) -> None:
        self.prompts, self.arm = prompts, arm
        references = [example.completion for example in prompts.examples]
        tokens = [reply.likelihood[1] for reply in arm.replies[0] if reply.likelihood]
        self.expected: dict[str, list[Any]] = dict.fromkeys(CORPUS, references) | {"perplexity": tokens}
        self.answers = [[reply.answer.text if reply.answer else "" for reply in sample] for sample in arm.replies]
        self.scores = [score_answers(prompts.metrics, sample, references) for sample in self.answers]

    def interval(self, metric: str) -> Interval:
        if metric in PER_PROMPT:
            return mean_interval(self._matrix(metric), self.prompts.seed)
        return corpus_interval(metric, self._matrix(metric), self.expected[metric], self.prompts.seed)

    def minus(self, other: "_ScoredArm", metric: str) -> Difference:
        matrices, seed = (self._matrix(metric), other._matrix(metric)), self.prompts.seed
        if metric in PER_PROMPT:
            return mean_difference(*matrices, seed)
        return corpus_difference(metric, *matrices, self.expected[metric], seed)

    def prediction(self, number: int) -> Answered:
        pairs = zip(self.arm.replies, self.scores, strict=True)
        samples = [_answered(replies[number], scores[number]) for replies, scores in pairs]
        if len(samples) == 1:
            return samples[0]
        means = {metric: sum(one.scores[metric] for one in samples) / len(samples) for metric in samples[0].scores}
        return Answered(means, draws=samples)

    def _matrix(self, metric: str) -> list[list[Any]]:
        """What the metric is computed from, as prompts x samples: scores, answers, or log-likelihoods."""
        samples: list[list[Any]] = self.answers
        if metric in PER_PROMPT:
            samples = [[scores[metric] for scores in sample] for sample in self.scores]
        elif metric == "perplexity":
            samples = [[reply.likelihood and reply.likelihood[0] for reply in sample] for sample in self.arm.replies]
        return list(map(list, zip(*samples, strict=True)))


def _answered(reply: Reply, scores: dict[str, float]) -> Answered:
    answer, likelihood = reply.answer, reply.likelihood
    text, finished = (answer.text, answer.finished) if answer else (None, None)
    if likelihood:
        scores = scores | {"perplexity": perplexity(*likelihood)}
    return Answered(scores, text, finished, *(likelihood or ()))
