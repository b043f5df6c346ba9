"""Was it worth it? Every arm's scores with their intervals, the differences between arms, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Literal

from finetune.evaluation.answers import Arm
from finetune.evaluation.metrics import HIGHER_IS_BETTER, PER_PROMPT, SPELLED, perplexity, score_answers
from finetune.evaluation.prompts import Prompts
from finetune.evaluation.statistics import (
    MAX_P,
    Difference,
    Interval,
    corpus_difference,
    corpus_interval,
    mean_difference,
    mean_interval,
)

# The smallest gain that is worth a tuned model's upkeep: of a score between 0 and 1, or of the base's perplexity.
SMALLEST_GAIN = 0.05
# Of a score between 0 and 1: answers that are known to score less are of no use.
USELESS = 0.1
VerdictKind = Literal["tuning_wins", "prompting_is_enough", "nothing_works", "tuning_hurts", "cannot_tell"]


@dataclass(frozen=True)
class Verdict:
    """Whether tuning was worth it, in a sentence with its evidence: `difference` is tuned minus the arm `against`."""

    kind: VerdictKind
    sentence: str
    against: str
    difference: Difference


def decide_verdict(
    metric: str, base: Mapping[str, Interval], differences: Mapping[str, Difference], shots: int = 0
) -> Verdict:
    """Whether tuning beat the best way of prompting: `base` and `differences` (tuned minus base) by arm.

    Tuning wins, or hurts, if the interval of the difference leaves 0 out and p is at most 0.05. Otherwise prompting is
    enough if that interval leaves out every gain above `SMALLEST_GAIN`, or the base's own interval leaves no room for
    one, unless the base's answers are known to be of no use (`USELESS`): then nothing works. Else nobody can tell.
    `zero_shot` and `few_shot` (of `shots` examples) are named as such in the sentence.
    """
    better = 1 if HIGHER_IS_BETTER[metric] else -1
    # The best is chosen on the prompts it is judged on, so its score is a little flattered: a win is the more certain
    # for it. A wrong "hurts" or "enough" needs an arm's interval to miss (2.5 %), so two arms at most double that.
    against = max(base, key=lambda arm: better * base[arm].mean)
    rival, found = base[against], differences[against]
    gain, (least, most) = better * found.mean, sorted((better * found.low, better * found.high))
    matters = SMALLEST_GAIN if better > 0 else SMALLEST_GAIN * rival.mean
    full = better > 0 and rival.low >= 1 - SMALLEST_GAIN
    kind = _decide(least, most, found.p, matters, full)
    if kind == "prompting_is_enough" and better > 0 and rival.high <= USELESS:
        kind = "nothing_works"

    arm = {"zero_shot": "zero-shot", "few_shot": f"{shots}-shot"}.get(against, against.replace("_", " "))
    name, on = SPELLED[metric], f"on {_prompts(found)}"
    loss = f"{-gain:.2f} {name} {_range(-most, -least)}"
    apart = f"(difference {found.mean:z.2f} {_range(found.low, found.high)})"
    score = f"{rival.mean:.2f} {_range(rival.low, rival.high)}"
    reason = "" if most <= matters else f", which already scores {score}"
    sentences: dict[VerdictKind, str] = {
        "tuning_wins": f"Tuning beats {arm} prompting by {gain:.2f} {name} {_range(least, most)} {on}",
        "nothing_works": f"Nothing works yet: tuned is not better than {arm} {apart}, which scores {score} {on}",
        "tuning_hurts": f"Tuning hurts: tuned is worse than {arm} prompting by {loss} {on}",
        "prompting_is_enough": f"Prompting is enough: tuned is not better than {arm} {apart}{reason}",
        "cannot_tell": f"Cannot tell with {_prompts(found)}: {_doubt(found)}",
    }
    return Verdict(kind, sentences[kind], against, found)


def _decide(least: float, most: float, p: float, matters: float, full: bool) -> VerdictKind:
    # A BCa interval is too narrow where very few prompts differ (3 of 100, or 3 of 3); the exact tests know better.
    certain = p <= MAX_P
    if least > 0 and certain:
        return "tuning_wins"
    if most < 0 and certain:
        return "tuning_hurts"
    return "prompting_is_enough" if most <= matters or full else "cannot_tell"


def _doubt(found: Difference) -> str:
    """Why nobody can tell, and how many prompts, and draws if there were several, might."""
    more = f"about {4 * found.prompts:,} prompts"  # widths shrink with the square root of the number
    if found.draws > 1:
        more += f" and {4 * found.draws} draws of examples"
    if found.high - found.low == inf:
        return f"one has no interval; try {more}"
    if found.low > 0 or found.high < 0:
        without = f"the interval {_range(found.low, found.high)} leaves 0 out"
        return f"{without}, but the {found.test} test gives p = {found.p:.2f}; try {more}"
    return f"the interval is {found.high - found.low:.2f} wide; {more} would halve it"


def _range(low: float, high: float) -> str:
    return f"[{low:z.2f}, {high:z.2f}]"


def _prompts(found: Difference) -> str:
    return f"{found.prompts:,} prompt{'s' if found.prompts != 1 else ''}"


@dataclass(frozen=True)
class ArmScores:
    """By arm and metric the value with its interval, by arm and metric tuned minus the arm, and the verdict."""

    scores: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]
    # None where the tuned model alone has answered.
    verdict: Verdict | None


def score_arms(prompts: Prompts, arms: dict[str, Arm]) -> ArmScores:
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
    verdict = decide_verdict(headline, base, against, prompts.decoding.shots) if base else None
    return ArmScores(scores, differences, verdict)


def describe_evaluation(prompts: Prompts, arms: dict[str, Arm], retention: dict[str, Any] | None) -> dict[str, Any]:
    """What result.json says about the evaluation; the verdict says what the model forgot, if it did."""
    judgement = score_arms(prompts, arms)
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


def list_predictions(prompts: Prompts, arms: dict[str, Arm]) -> list[dict[str, Any]]:
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
        self.scores = [score_answers(prompts.metrics, draw, self.references) for draw in self.answers]

    def interval(self, metric: str) -> Interval:
        if metric in PER_PROMPT:
            return mean_interval(self._matrix(metric), self.prompts.seed)
        return corpus_interval(metric, self._given(metric), self._known(metric), self.prompts.seed)

    def minus(self, other: "_Cases", metric: str) -> Difference:
        if metric in PER_PROMPT:
            return mean_difference(self._matrix(metric), other._matrix(metric), self.prompts.seed)
        given, known = (self._given(metric), other._given(metric)), self._known(metric)
        return corpus_difference(metric, *given, known, self.prompts.seed)

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
            "scores": scores | {"perplexity": perplexity(nll, tokens)},
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
