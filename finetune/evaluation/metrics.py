"""How good is one answer? All scores but the perplexity lie between 0 and 1, and more is better."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from finetune.data.strict_json import STRICT


def exact_match(answer: str, reference: str) -> float:
    """1 if the two are equal but for surrounding whitespace."""
    return float(answer.strip() == reference.strip())


def valid_json(answer: str, reference: str) -> float:
    """1 if the whole answer is one JSON object; text or a fence around it, NaN and a repeated key make it invalid."""
    return float(_read_object(answer) is not None)


def field_f1(answer: str, reference: str) -> float:
    """F1 over the (key, value) pairs of two JSON objects; 0 for an answer that is none.

    Values are equal if their text is: 5 and " 5" are. Nested ones are compared as JSON with sorted keys.
    Raises ValueError if the reference is no JSON object.
    """
    expected = _read_object(reference)
    if expected is None:
        raise ValueError(f"field_f1 needs references that are JSON objects; this one is not: {reference!r}")
    given = _read_object(answer)
    if given is None:
        return 0.0
    pairs, wanted = _pairs(given), _pairs(expected)
    return 2 * len(pairs & wanted) / (len(pairs) + len(wanted)) if pairs or wanted else 1.0


def accuracy(answer: str, reference: str) -> float:
    """1 if the two are the same label, whatever their case, surrounding whitespace and final period."""
    return float(_label(answer) == _label(reference))


def contains(answer: str, reference: str) -> float:
    """1 if the reference stands in the answer, as whole words and whatever the case; `|` parts alternatives."""
    alternatives = "|".join(re.escape(text.strip()) for text in reference.split("|"))
    return float(re.search(rf"(?<!\w)(?:{alternatives})(?!\w)", answer, re.IGNORECASE) is not None)


def chrf(answer: str, reference: str) -> float:
    """Character n-gram F-score (chrF2 of sacrebleu, Popović 2015) divided by 100."""
    from sacrebleu import sentence_chrf

    if answer.strip() == reference.strip():
        return 1.0  # sacrebleu scores two empty texts 0
    return float(sentence_chrf(answer, [reference]).score) / 100


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (ROUGE-L of rouge_score, Lin 2004), words of any script."""
    from rouge_score.rouge_scorer import RougeScorer

    if answer.strip() == reference.strip():
        return 1.0  # also where there is no word in either
    # rouge_score's own tokenizer drops every letter outside a-z.
    words = SimpleNamespace(tokenize=lambda text: re.findall(r"\w+", text.lower()))
    scorer = RougeScorer(["rougeL"], tokenizer=words)
    return float(scorer.score(target=reference, prediction=answer)["rougeL"].fmeasure)


def macro_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean over the labels in the references of each label's F1; labels are compared as in `accuracy`."""
    # By hand: an interval takes thousands of these, each of which costs scikit-learn milliseconds.
    expected, given = [_label(text) for text in references], [_label(text) for text in answers]
    references_of, answers_of = Counter(expected), Counter(given)
    right = Counter(label for label, other in zip(expected, given, strict=True) if label == other)
    return fmean(2 * right[label] / (references_of[label] + answers_of[label]) for label in references_of)


def perplexity(nll: float, tokens: int) -> float:
    """The perplexity of `tokens` tokens whose negative log-likelihoods, in nats, add up to `nll`; less is better."""
    return math.exp(nll / tokens)


PER_PROMPT: dict[str, Callable[[str, str], float]] = {
    score.__name__: score for score in (exact_match, valid_json, field_f1, accuracy, contains, chrf, rouge_l)
}
# Of answers and references, and defined for a whole test set only.
CORPUS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {"macro_f1": macro_f1}
METRICS = (*PER_PROMPT, *CORPUS, "perplexity")  # the command line reads them: nothing heavy is imported above
HIGHER_IS_BETTER = {name: name != "perplexity" for name in METRICS}
SPELLED = {name: name.replace("_", " ").replace("f1", "F1") for name in METRICS}  # the names in a sentence
SPELLED |= {"valid_json": "valid JSON", "chrf": "chrF", "rouge_l": "ROUGE-L"}


def score_answers(names: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """Each answer's scores by those of the metrics that score single answers."""
    return [
        {name: PER_PROMPT[name](answer, reference) for name in names if name in PER_PROMPT}
        for answer, reference in zip(answers, references, strict=True)
    ]


def _label(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().casefold()


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = STRICT.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pairs(fields: dict[str, Any]) -> set[tuple[str, str]]:
    def text(value: object) -> str:
        return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)

    return {(key, text(value)) for key, value in fields.items()}
