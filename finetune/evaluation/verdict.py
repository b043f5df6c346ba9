"""Was tuning worth it, and how sure is that?"""

from collections.abc import Mapping
from math import inf

from finetune.evaluation.metrics import HIGHER_IS_BETTER, SPELLED
from finetune.evaluation.statistics import MAX_P
from finetune.runs.result import Difference, Interval, Verdict, VerdictKind

# The smallest gain that is worth a tuned model's upkeep: of a score between 0 and 1, or of the base's perplexity.
SMALLEST_GAIN = 0.05
# Of a score between 0 and 1: answers that are known to score less are of no use.
USELESS = 0.1


def decide_verdict(
    metric: str, base: Mapping[str, Interval], differences: Mapping[str, Difference], shots: int = 0
) -> Verdict:
    """Whether tuning beat the best way of prompting: `base` and `differences` (tuned minus base) by arm.

    Tuning wins, or hurts, if the interval of the difference leaves 0 out and p is at most 0.05. Otherwise prompting is
    enough if that interval leaves out every gain above `SMALLEST_GAIN`, or the base's own interval leaves no room for
    one, unless the base's answers are known to be of no use (`USELESS`): then nothing works. Else nobody can tell.
    `zero_shot` and `few_shot` (of `shots` examples) are named as such in the sentence.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    # The best is chosen on the prompts it is judged on, so its score is a little flattered: a win is the more certain
    # for it. A wrong "hurts" or "enough" needs an arm's interval to miss (2.5 %), so two arms at most double that.
    against = max(base, key=lambda arm: sign * base[arm].mean)
    rival, difference = base[against], differences[against]
    gain, (least, most) = sign * difference.mean, sorted((sign * difference.low, sign * difference.high))
    worthwhile = SMALLEST_GAIN if sign > 0 else SMALLEST_GAIN * rival.mean
    no_room = sign > 0 and rival.low >= 1 - SMALLEST_GAIN
    kind = _decide(least, most, difference.p, enough=most <= worthwhile or no_room)
    if kind == "prompting_is_enough" and sign > 0 and rival.high <= USELESS:
        kind = "nothing_works"

    arm = {"zero_shot": "zero-shot", "few_shot": f"{shots}-shot"}.get(against, against.replace("_", " "))
    name, prompts = SPELLED[metric], _prompts(difference)
    no_better = f"tuned is not better than {arm} (difference {_estimate(difference)})"
    already = "" if most <= worthwhile else f", which already scores {_estimate(rival)}"
    sentences: dict[VerdictKind, str] = {
        "tuning_wins": f"Tuning beats {arm} prompting by {gain:.2f} {name} {_range(least, most)} on {prompts}",
        "nothing_works": f"Nothing works yet: {no_better}, which scores {_estimate(rival)} on {prompts}",
        "tuning_hurts": f"Tuning hurts: tuned is worse than {arm} prompting by {-gain:.2f} {name} "
        f"{_range(-most, -least)} on {prompts}",
        "prompting_is_enough": f"Prompting is enough: {no_better}{already}",
        "cannot_tell": f"Cannot tell with {prompts}: {_doubt(difference)}",
    }
    return Verdict(kind, sentences[kind], against)


def _decide(least: float, most: float, p: float, enough: bool) -> VerdictKind:
    # A BCa interval is too narrow where very few prompts differ (3 of 100, or 3 of 3); the exact tests know better.
    certain = p <= MAX_P
    if least > 0 and certain:
        return "tuning_wins"
    if most < 0 and certain:
        return "tuning_hurts"
    return "prompting_is_enough" if enough else "cannot_tell"


def _doubt(difference: Difference) -> str:
    """Why nobody can tell, and how many prompts, and few-shot samples if there were several, might."""
    more = f"about {4 * difference.prompts:,} prompts"  # widths shrink with the square root of the number
    if difference.draws > 1:
        more += f" and {4 * difference.draws} draws of examples"
    if difference.high - difference.low == inf:
        return f"one has no interval; try {more}"
    if difference.low > 0 or difference.high < 0:
        without = f"the interval {_range(difference.low, difference.high)} leaves 0 out"
        return f"{without}, but the {difference.test} test gives p = {difference.p:.2f}; try {more}"
    return f"the interval is {difference.high - difference.low:.2f} wide; {more} would halve it"


def _estimate(value: Interval) -> str:
    return f"{value.mean:z.2f} {_range(value.low, value.high)}"


def _range(low: float, high: float) -> str:
    return f"[{low:z.2f}, {high:z.2f}]"


def _prompts(difference: Difference) -> str:
    return f"{difference.prompts:,} prompt{'s' if difference.prompts != 1 else ''}"
