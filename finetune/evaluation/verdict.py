"""Was tuning worth it, and how sure is that?"""

from collections.abc import Mapping
from math import inf

from finetune.evaluation.metrics import HIGHER_IS_BETTER, SPELLED
from finetune.evaluation.statistics import MAX_P
from finetune.runs.result import Difference, Interval, Verdict, name_arm

# The smallest gain that is worth a tuned model's upkeep: of a score between 0 and 1, or of the base's perplexity.
SMALLEST_GAIN = 0.05
USELESS = 0.1  # of a score between 0 and 1: answers that are known to score less are of no use


def decide_verdict(
    metric: str, base: Mapping[str, Interval], differences: Mapping[str, Difference], shots: int = 0
) -> Verdict:
    """Whether tuning beat the best way of prompting: `base` and `differences` (tuned minus base) by arm.

    Tuning wins, or hurts, if the interval of the difference leaves 0 out and p is at most 0.05; for "hurts" p is
    corrected for the number of ways of prompting (Bonferroni). Otherwise prompting is enough if that interval leaves
    out every gain above `SMALLEST_GAIN`, or the base's own interval leaves no room for one, unless the base's answers
    are known to be of no use (`USELESS`): then nothing works. Else nobody can tell.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    # The best is chosen on the prompts it is judged on, so its score is a little flattered: a win is the more certain
    # for it, and "hurts" is corrected.
    against = max(base, key=lambda arm: sign * base[arm].mean)
    rival, difference = base[against], differences[against]
    gain, (least, most) = sign * difference.mean, sorted((sign * difference.low, sign * difference.high))
    worthwhile = SMALLEST_GAIN if sign > 0 else SMALLEST_GAIN * rival.mean
    no_room = sign > 0 and rival.low >= 1 - SMALLEST_GAIN
    # A BCa interval is too narrow where very few prompts differ (3 of 100, or 3 of 3); the exact tests know better.
    certain = difference.p <= MAX_P
    arm = name_arm(against, shots)
    prompts = f"{difference.prompts:,} prompt{'s' if difference.prompts != 1 else ''}"
    no_better = f"tuned is not better than {arm} (difference {_estimate(difference)})"
    if certain and least > 0:
        won = f"Tuning beats {arm} prompting by {gain:.2f} {SPELLED[metric]} {_range(least, most)} on {prompts}"
        return Verdict("tuning_wins", won, against)
    if difference.p * len(base) <= MAX_P and most < 0:
        lost = f"{-gain:.2f} {SPELLED[metric]} {_range(-most, -least)} on {prompts}"
        return Verdict("tuning_hurts", f"Tuning hurts: tuned is worse than {arm} prompting by {lost}", against)
    if most > worthwhile and not no_room:
        return Verdict("cannot_tell", f"Cannot tell with {prompts}: {_doubt(difference)}", against)
    if sign > 0 and rival.high <= USELESS:
        useless = f"Nothing works yet: {no_better}, which scores {_estimate(rival)} on {prompts}"
        return Verdict("nothing_works", useless, against)
    already = "" if most <= worthwhile else f", which already scores {_estimate(rival)}"
    return Verdict("prompting_is_enough", f"Prompting is enough: {no_better}{already}", against)


def _doubt(difference: Difference) -> str:
    """Why nobody can tell, and how many prompts might tell."""
    more = f"about {4 * difference.prompts:,} prompts"  # widths shrink with the square root of the number
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
