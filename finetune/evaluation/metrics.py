"""How good is one answer? All scores but the perplexity lie between 0 and 1, and more is better."""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from finetune.data.strict_json import STRICT

# Scripts that put no spaces between words, or join particles to them: Thai, Lao, Burmese, Khmer, Chinese, Japanese,
# Korean.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
SPACED_LETTER = rf"[^\W{UNSPACED}]"


def exact_match(answer: str, reference: str) -> float:
    """1 if the two are equal but for surrounding whitespace and for how Unicode composes a character."""
    return float(_composed(answer) == _composed(reference))


def valid_json(answer: str, reference: str) -> float:
    """1 if the whole answer is one JSON object; text or a fence around it, NaN and a repeated key make it invalid."""
    return float(_read_object(answer) is not None)


def valid_json_lenient(answer: str, reference: str) -> float:
    """1 if there is exactly one JSON object in the answer, whatever surrounds it."""
    return float(_find_object(answer) is not None)


def field_f1_lenient(answer: str, reference: str) -> float:
    """As `field_f1`, of the one JSON object in the answer, whatever surrounds it."""
    found = _find_object(answer)
    return field_f1("" if found is None else json.dumps(found), reference)


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
    """1 if the reference stands in the answer, as whole words and whatever the case; `|` parts alternatives.

    A script without spaces between words has no borders of words.
    """
    alternatives = "|".join(_as_whole_words(_composed(text)) for text in reference.split("|"))
    return float(re.search(alternatives, _composed(answer), re.IGNORECASE) is not None)


def chrf(answer: str, reference: str) -> float:
    """Character n-gram F-score of one answer (chrF2 of sacrebleu, Popović 2015) divided by 100; see `corpus_chrf`."""
    from sacrebleu import sentence_chrf

    if answer.strip() == reference.strip():
        return 1.0  # sacrebleu scores two empty texts 0
    return float(sentence_chrf(answer, [reference]).score) / 100


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (ROUGE-L of rouge_score, Lin 2004), words of any script.

    Of a script without spaces between words, each character counts as one.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if answer.strip() == reference.strip():
        return 1.0  # also where there is no word in either
    # rouge_score's own tokenizer drops every letter outside a-z.
    word = rf"[{UNSPACED}]|{SPACED_LETTER}+"
    words = SimpleNamespace(tokenize=lambda text: re.findall(word, _composed(text).lower()))
    scorer = RougeScorer(["rougeL"], tokenizer=words)
    return float(scorer.score(target=reference, prediction=answer)["rougeL"].fmeasure)


def macro_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean over the labels in the references of each label's F1; labels are compared as in `accuracy`."""
    # By hand: an interval takes thousands of these, each of which costs scikit-learn milliseconds.
    expected, given = [_label(text) for text in references], [_label(text) for text in answers]
    references_of, answers_of = Counter(expected), Counter(given)
    right = Counter(label for label, other in zip(expected, given, strict=True) if label == other)
    return fmean(2 * right[label] / (references_of[label] + answers_of[label]) for label in references_of)


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 as papers report it, divided by 100: of the n-grams of all answers together (sacrebleu, Popović 2015)."""
    scorer = _chrf_scorer()
    counts = [_chrf_counts(*pair) for pair in zip(answers, references, strict=True)]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    score = scorer._compute_score_from_stats(totals)  # private: sacrebleu, its corpus_score counts anew each time
    return float(score.score) / 100


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@lru_cache(maxsize=2**16)
def _chrf_counts(answer: str, reference: str) -> tuple[int, ...]:
    """The n-grams of an answer, of its reference and of both, by length; an interval asks for them again and again."""
    [counts] = _chrf_scorer()._extract_corpus_statistics([answer], [[reference]])  # private: sacrebleu, as above
    return tuple(counts)


def perplexity(nll: float, tokens: int) -> float:
    """The perplexity of `tokens` tokens whose negative log-likelihoods, in nats, add up to `nll`; less is better."""
    return math.exp(nll / tokens)


PER_PROMPT: dict[str, Callable[[str, str], float]] = {
    score.__name__: score
    for score in (
        *(exact_match, valid_json, valid_json_lenient, field_f1, field_f1_lenient),
        *(accuracy, contains, chrf, rouge_l),
    )
}
# Of the answers and references of a whole test set; chrF has a score for each answer, too, whose mean it is not.
CORPUS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {"macro_f1": macro_f1, "chrf": corpus_chrf}
MEANS = tuple(name for name in PER_PROMPT if name not in CORPUS)  # the metrics that are the mean of prompts' scores
# The command line reads them: nothing heavy is imported above.
METRICS = (*PER_PROMPT, *(name for name in CORPUS if name not in PER_PROMPT), "perplexity")
LENIENT = {"valid_json": "valid_json_lenient", "field_f1": "field_f1_lenient"}  # what does not judge the form
HIGHER_IS_BETTER = {name: name != "perplexity" for name in METRICS}
SPELLED = {name: name.replace("_", " ").replace("f1", "F1") for name in METRICS}  # the names in a sentence
SPELLED |= {"valid_json": "valid JSON", "chrf": "chrF", "rouge_l": "ROUGE-L"}
SPELLED |= {lenient: f"{SPELLED[strict]}, lenient" for strict, lenient in LENIENT.items()}


def score_answers(names: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """Each answer's scores by those of the metrics that score single answers."""
    return [
        {name: PER_PROMPT[name](answer, reference) for name in names if name in PER_PROMPT}
        for answer, reference in zip(answers, references, strict=True)
    ]


def _label(text: str) -> str:
    return _composed(text).removesuffix(".").rstrip().casefold()


def _composed(text: str) -> str:
    """The text without surrounding whitespace, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def _as_whole_words(text: str) -> str:
    """A pattern of the text that no letter of a script with spaces touches, where it begins or ends with one itself."""
    ends = [bool(re.match(SPACED_LETTER, letter)) for letter in (text[:1], text[-1:])]
    before, after = (f"(?<!{SPACED_LETTER})" if ends[0] else ""), (f"(?!{SPACED_LETTER})" if ends[1] else "")
    return f"{before}{re.escape(text)}{after}"


def _find_object(text: str) -> dict[str, Any] | None:
    """The one JSON object in a text, None where there is none, or several."""
    found: list[dict[str, Any]] = []
    position = text.find("{")
    while position >= 0 and len(found) < 2:
        try:
            value, end = STRICT.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            found.append(value)
        position = text.find("{", end)
    return found[0] if len(found) == 1 else None


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = STRICT.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pairs(fields: dict[str, Any]) -> set[tuple[str, str]]:
    def text(value: object) -> str:
        return _composed(value) if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)

    return {(key, text(value)) for key, value in fields.items()}
