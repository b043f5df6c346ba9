import json
import math
import random
import subprocess
import sys

import pytest

from finetune.evaluation.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    PER_PROMPT,
    SPELLED,
    accuracy,
    chrf,
    contains,
    corpus_chrf,
    exact_match,
    field_f1,
    field_f1_lenient,
    macro_f1,
    perplexity,
    rouge_l,
    score_answers,
    valid_json,
    valid_json_lenient,
)


@pytest.mark.parametrize("name", PER_PROMPT)
@pytest.mark.parametrize("text", ['{"street": "Élysée", "number": 5}', "{}", '{"a": {"b": [1, null]}}'])
def test_an_answer_equal_to_its_reference_scores_one(name, text):
    assert PER_PROMPT[name](text, text) == 1
    assert PER_PROMPT[name](f" {text}\n", text) == 1


@pytest.mark.parametrize("name", ["exact_match", "accuracy", "chrf", "rouge_l"])
@pytest.mark.parametrize("text", ["", "!", "x", "東京都", "Привет, мир"])
def test_equal_texts_of_any_script_score_one(name, text):
    assert PER_PROMPT[name](text, text) == 1


@pytest.mark.parametrize("name", PER_PROMPT)
def test_an_empty_answer_scores_zero(name):
    assert PER_PROMPT[name]("", '{"a": "b"}') == 0


@pytest.mark.parametrize(
    "answer",
    [
        '```json\n{"a": 1}\n```',
        'Here it is: {"a": 1}',
        '{"a": 1} {"a": 1}',
        '[{"a": 1}]',
        '"a"',
        "1",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        "{'a': 1}",
        '{"a": 1,}',
        '{"a": ' + "[" * 100_000,
        '{"a": ' + "9" * 5_000 + "}",
    ],
)
def test_what_is_not_exactly_one_json_object_is_invalid_and_has_no_fields(answer):
    assert valid_json(answer, "") == 0
    assert field_f1(answer, '{"a": 1}') == 0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 1 / 2),
        ('{"a": 1}', '{"a": 1, "b": 2, "c": 3}', 2 / 4),
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1}', 2 / 4),
        ('{"b": 2, "a": 1}', '{"a": 1, "b": 2}', 1),
        ('{"a": "5 "}', '{"a": 5}', 1),
        ('{"a": "5.0"}', '{"a": 5}', 0),
        ('{"a": null}', '{"a": ""}', 0),
        ('{"a": {"y": 2, "x": "é"}}', '{"a": {"x": "\\u00e9", "y": 2}}', 1),
        ('{"A": 1}', '{"a": 1}', 0),
        ("{}", "{}", 1),
        ("{}", '{"a": 1}', 0),
    ],
)
def test_field_f1_counts_pairs_of_key_and_value(answer, reference, expected):
    assert field_f1(answer, reference) == pytest.approx(expected)


def test_field_f1_refuses_a_reference_that_is_no_object():
    with pytest.raises(ValueError, match="this one is not: 'Main Street'"):
        field_f1('{"a": 1}', "Main Street")


def test_exact_match_sees_case_and_inner_whitespace():
    assert exact_match("  yes\n", "yes") == 1
    assert exact_match("Yes", "yes") == exact_match("y es", "yes") == 0


def test_accuracy_ignores_case_surrounding_whitespace_and_a_final_period():
    assert accuracy(" Sarcastic. \n", "sarcastic") == accuracy("STRASSE", "straße") == 1
    assert accuracy("not sarcastic", "sarcastic") == accuracy("yes..", "yes") == 0


def test_macro_f1_gives_every_label_of_the_references_the_same_weight():
    # yes: precision 2/3, recall 1, F1 0.8; no: no answer, F1 0. "maybe" is no label of the references.
    assert macro_f1(["yes", "YES.", "yes", "maybe"], ["yes", "yes", "no", "no"]) == pytest.approx(0.4)


def test_macro_f1_is_scikit_learns():
    from sklearn.metrics import f1_score

    draw = random.Random(0)
    for _ in range(20):
        given, known = (draw.choices(labels, k=9) for labels in ("abcx", "abcd"))
        expected = f1_score(known, given, labels=sorted(set(known)), average="macro", zero_division=0)
        assert macro_f1(given, known) == pytest.approx(expected)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence_of_words():
    # "the cat ... mat": 3 of 4 and 3 of 6 words in common.
    assert rouge_l("The cat, big mat", "the cat sat on a mat") == pytest.approx(0.6)
    assert rouge_l("добрый день", "добрый вечер") == pytest.approx(0.5)


def test_chrf_is_sacrebleus_divided_by_a_hundred():
    # References "ab": unigram precision 1/2 and recall 1/2, bigram 0: F2 of the means over n = 1, 2.
    assert chrf("ac", "ab") == pytest.approx(0.25)
    assert 0 < chrf("a dog barks", "a cat barks") < 1
    assert chrf("xyz", "abc") == 0


def test_perplexity_is_the_exponential_of_the_mean_per_token():
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7)


def test_score_gives_each_answers_scores():
    names = ["accuracy", "macro_f1", "exact_match"]
    assert score_answers(names, ["Yes", "no", "no"], ["yes", "no", "yes"]) == [
        {"accuracy": 1, "exact_match": 0},
        {"accuracy": 1, "exact_match": 1},
        {"accuracy": 0, "exact_match": 0},
    ]


def test_score_refuses_answers_and_references_of_different_number():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        score_answers(["exact_match"], ["a"], ["a", "b"])


def test_only_of_perplexity_less_is_better():
    assert set(HIGHER_IS_BETTER) == set(METRICS)
    assert [name for name, higher in HIGHER_IS_BETTER.items() if not higher] == ["perplexity"]


def test_the_names_are_known_without_importing_a_scoring_library():
    code = "import sys, json, finetune.evaluation.metrics; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"sacrebleu", "rouge_score", "sklearn", "numpy", "torch"} & set(loaded)


def test_contains_looks_for_whole_words():
    assert contains("It is paris, France.", "Paris") == 1
    assert contains("parisian", "Paris") == 0
    assert contains("There are 7.", "seven|7") == contains("Seven!", "seven|7") == 1
    assert contains("(c++)", "C++") == 1


def test_every_metric_has_a_name_for_sentences():
    assert set(SPELLED) == set(METRICS)
    assert not any("_" in name for name in SPELLED.values())


@pytest.mark.parametrize(
    ("answer", "reference", "found"),
    [
        ("答案是北京。", "北京", 1),
        ("正解は東京都です", "東京", 1),
        ("คำตอบคือกรุงเทพ", "กรุงเทพ", 1),
        ("정답은 서울입니다", "서울", 1),
        ("the answer: 42円", "42", 1),
        ("142", "42", 0),
        ("category", "cat", 0),
        ("答案是北京", "上海", 0),
    ],
)
def test_contains_knows_scripts_without_spaces(answer, reference, found):
    assert contains(answer, reference) == found


def test_rouge_l_counts_characters_where_words_have_no_spaces():
    assert rouge_l("北京是中国的首都", "中国的首都是北京") == pytest.approx(5 / 8)
    assert rouge_l("the cat", "the dog") == pytest.approx(1 / 2)


@pytest.mark.parametrize("score", [exact_match, accuracy, contains, rouge_l])
def test_how_unicode_composes_a_character_does_not_matter(score):
    assert score("Cafe\u0301", "Caf\u00e9") == score("Caf\u00e9", "Cafe\u0301") == 1


def test_the_corpus_chrf_is_sacrebleus_and_not_the_mean_of_answers():
    from sacrebleu import corpus_chrf as expected

    answers, references = (
        ["the cat sat", "no", "a long answer that is mostly right"],
        ["the cat sat", "yes", "a long one"],
    )
    assert corpus_chrf(answers, references) == pytest.approx(expected(answers, [references]).score / 100)
    assert corpus_chrf(answers, references) != pytest.approx(sum(map(chrf, answers, references)) / 3, abs=0.01)


@pytest.mark.parametrize(
    ("answer", "lenient"),
    [
        ('```json\n{"a": 1}\n```', 1),
        ('Here it is: {"a": 1}. Anything else?', 1),
        ('{"a": 1}', 1),
        ('{"a": 1} or {"a": 2}', 0),
        ("no object {here}", 0),
        ('{"a": 1, "a": 1}', 0),
    ],
)
def test_the_lenient_scores_take_the_one_object_out_of_what_surrounds_it(answer, lenient):
    assert valid_json_lenient(answer, "") == field_f1_lenient(answer, '{"a": 1}') == lenient
