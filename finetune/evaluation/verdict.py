"""Was it worth it? Every arm's scores with their intervals, the differences between arms, and the verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from finetune.evaluation import metrics
from finetune.evaluation import statistics as significance
from finetune.evaluation.answers import Arm, Prompts
from finetune.evaluation.statistics import Difference, Interval, Verdict


@dataclass(frozen=True)
class Judgement:
    """By arm and metric the value with its interval, by arm and metric tuned minus the arm, and the verdict."""

    scores: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]
    # None where the tuned model alone has answered.
    verdict: Verdict | None


def judge(prompts: Prompts, arms: dict[str, Arm]) -> Judgement:
    """Score every arm; the first metric decides the verdict. See significance.py for the statistics."""
    cases = {name: _Cases(prompts, arm) for name, arm in arms.items()}
    scores = {name: {metric: case.interval(metric) for metric in prompts.metrics} for name, case in cases.items()}
    differences = {
        name: {metric: cases["tuned"].minus(case, metric) for metric in prompts.metrics}
        for name, case in cases.items()
        if name != "tuned"
    }
    headline = prompts.metrics[0]
    base = {name: found[headline] for name, found in scores.items() if not name.startswith("tuned")}
    against = {name: differences[name][headline] for name in base}
    verdict = significance.verdict(headline, base, against, prompts.decoding.shots) if base else None
    return Judgement(scores, differences, verdict)


def describe(prompts: Prompts, arms: dict[str, Arm], retention: dict[str, Any] | None) -> dict[str, Any]:
    """What result.json says about the evaluation; the verdict says what the model forgot, if it did."""
    judgement = judge(prompts, arms)
    verdict = judgement.verdict
    forgot = [retention["sentence"]] if retention and retention["forgot"] else []
    told = verdict and _verdict(verdict, forgot)
    return {
        "split": prompts.split,
        "prompts": len(prompts.examples),
        "metric": prompts.metrics[0],
        "max_new_tokens": prompts.max_new_tokens,
        "shots": [[example.place for example in draw.shown] for draw in prompts.few_shot],
        "arms": {
            name: {
                **{metric: _plain(found) for metric, found in judgement.scores[name].items()},
                "unfinished_answers": sum(not r.answer.finished for draw in arm.replies for r in draw if r.answer),
                "seconds": round(arm.seconds, 2),
                "reused": arm.reused,
            }
            for name, arm in arms.items()
        },
        "differences": {
            name: {metric: _plain(found) for metric, found in by_metric.items()}
            for name, by_metric in judgement.differences.items()
        },
        "retention": retention,
        "verdict": told,
    }


def predictions(prompts: Prompts, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """One row for each held-out prompt: the prompt, its reference, and what each arm replied with its scores.

    An arm of several draws has them under `draws`, and the mean of their scores.
    """
    cases = {name: _Cases(prompts, arm) for name, arm in arms.items()}
    return [
        {
            "place": example.place,
            "prompt": example.prompt,
            "reference": example.completion,
            **{name: case.prediction(number) for name, case in cases.items()},
        }
        for number, example in enumerate(prompts.examples)
    ]


def _verdict(verdict: Verdict, forgot: list[str]) -> dict[str, str]:
    sentence = f"{'. '.join([verdict.sentence, *forgot])}."
    return {"kind": verdict.kind, "sentence": sentence, "against": verdict.against}


class _Cases:
    """An arm's replies as scores: by draw and prompt."""

    def __init__(self, prompts: Prompts, arm: Arm) -> None:
        self.prompts, self.arm = prompts, arm
        self.references = [example.completion for example in prompts.examples]
        self.answers = [[reply.answer.text if reply.answer else "" for reply in draw] for draw in arm.replies]
        self.scores = [metrics.score(prompts.metrics, draw, self.references) for draw in self.answers]

    def interval(self, metric: str) -> Interval:
        if metric in metrics.PER_PROMPT:
            return significance.interval(self._matrix(metric), self.prompts.seed)
        return significance.corpus_interval(metric, self._given(metric), self._known(metric), self.prompts.seed)

    def minus(self, other: "_Cases", metric: str) -> Difference:
        if metric in metrics.PER_PROMPT:
            return significance.difference(self._matrix(metric), other._matrix(metric), self.prompts.seed)
        given, known = (self._given(metric), other._given(metric)), self._known(metric)
        return significance.corpus_difference(metric, *given, known, self.prompts.seed)

    def prediction(self, number: int) -> dict[str, Any]:
        draws = [self._reply(draw, number) for draw in range(len(self.arm.replies))]
        if len(draws) == 1:
            return draws[0]
        means = {m: sum(d["scores"][m] for d in draws) / len(draws) for m in draws[0]["scores"]}
        return {"draws": draws, "scores": means}

    def _reply(self, draw: int, number: int) -> dict[str, Any]:
        reply, scores = self.arm.replies[draw][number], self.scores[draw][number]
        answer = {"answer": reply.answer.text, "finished": reply.answer.finished} if reply.answer else {}
        if not reply.likelihood:
            return {**answer, "scores": scores}
        nll, tokens = reply.likelihood
        return {
            **answer,
            "nll": nll,
            "tokens": tokens,
            "scores": scores | {"perplexity": metrics.perplexity(nll, tokens)},
        }

    def _matrix(self, metric: str) -> list[list[float]]:
        """Scores as prompts x draws."""
        return [[draw[number][metric] for draw in self.scores] for number in range(len(self.references))]

    def _given(self, metric: str) -> list[list[Any]]:
        """What a metric of the whole set is computed from, as prompts x draws."""
        if metric != "perplexity":
            return [list(row) for row in zip(*self.answers, strict=True)]
        return [[draw[number].likelihood[0] for draw in self.arm.replies] for number in range(len(self.references))]  # type: ignore[index]

    def _known(self, metric: str) -> Sequence[Any]:
        if metric != "perplexity":
            return self.references
        return [reply.likelihood[1] for reply in self.arm.replies[0] if reply.likelihood]


def _plain(found: Interval) -> dict[str, Any]:
    """As JSON holds it: an end that nobody knows is null."""
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(found).items()}
