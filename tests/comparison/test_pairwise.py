"""Differences between runs are tested in pairs, corrected for their number, and shown as letters."""

import numpy as np
import pytest

from finetune.comparison.pairwise import compact_letters, compare_pairs, correct_holm, setting_importance
from finetune.runs.predictions import Answered, Prediction


def test_the_groups_letters_are_those_of_a_published_example():
    # Piepho 2004, section 2: treatments 1 and 5, 1 and 7, 1 and 8, 2 and 4, 2 and 5, 3 and 5 differ, of eight.
    apart = {(1, 7), (1, 8), (2, 4), (2, 5), (3, 5)}
    found = compact_letters(8, lambda i, j: (i + 1, j + 1) in apart)
    for i in range(8):
        for j in range(i + 1, 8):
            assert bool(set(found[i]) & set(found[j])) == ((i + 1, j + 1) not in apart)


def test_the_correction_is_holms():
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_holm([0.5, 0.9]) == [1.0, 1.0]
    assert correct_holm([]) == []


def test_many_equal_runs_are_rarely_told_apart():
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(20):
        runs = [
            [Prediction("", [], "", {"tuned": Answered({"exact_match": float(x)})}) for x in draw.random(50) < 0.5]
            for _ in range(6)
        ]
        p = [found.p for found in compare_pairs(runs, "exact_match", 0).values()]
        wrong += min(correct_holm(p)) <= 0.05
    assert wrong <= 4  # 1 is expected; uncorrected it would be about 8


def test_a_setting_that_decides_the_score_is_found_important():
    rates, ranks = [1e-5, 1e-4, 1e-3, 1e-5, 1e-4, 1e-3, 1e-5, 1e-3], [4, 8, 4, 8, 4, 8, 8, 4]
    found, why_not = setting_importance({"trainer.learning_rate": rates, "adapter.r": ranks}, [r * 500 for r in rates])
    assert why_not == "" and next(iter(found)) == "trainer.learning_rate" and found["trainer.learning_rate"] > 0.8
    assert "needs 5 runs or more" in setting_importance({"seed": [1, 2]}, [0.1, 0.2])[1]
