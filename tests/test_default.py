"""The embedded model on the embedded data, as `make demo` runs them."""

import json

import pytest
from sklearn.metrics import f1_score

from finetune.runs.predictions import read_predictions
from finetune.runs.result import read_result

pytestmark = pytest.mark.slow


def f1(answer, reference):
    """Field F1 by scikit-learn: every pair of either side is a label, which the one should have and the other has."""
    try:
        given, expected = (json.loads(text, object_pairs_hook=list) for text in (answer, reference))
        given, expected = ({key: str(value).strip() for key, value in pairs} for pairs in (given, expected))
    except (ValueError, TypeError):
        return 0.0
    if len(given) < answer.count('":'):  # a key stands there twice
        return 0.0
    given, expected = set(given.items()), set(expected.items())
    pairs = [*(given | expected)]
    return f1_score([pair in expected for pair in pairs], [pair in given for pair in pairs])


@pytest.fixture
def finished(program, tmp_path):
    """`finished(*overrides)` runs the program, and returns what it printed, its result and its predictions."""

    def call(*overrides):
        done = program(*overrides, "tracking=none", f"output_dir={tmp_path}")
        assert done.returncode == 0, done.stderr
        [file] = tmp_path.glob("*/result.json")
        return done, read_result(file), read_predictions(file.with_name("predictions.jsonl"))

    return call


def test_the_default_run_beats_the_base_by_a_wide_margin(finished):
    done, result, predictions = finished()
    assert done.stderr == ""
    arms = {name: arm.scores for name, arm in result.evaluation.arms.items()}
    assert list(arms) == ["zero_shot", "few_shot", "tuned"]
    assert all(scores["field_f1"].low <= scores["field_f1"].mean <= scores["field_f1"].high for scores in arms.values())
    assert result.evaluation.verdict.kind == "tuning_wins"
    assert result.evaluation.verdict.sentence in " ".join(done.stdout.split())
    assert arms["tuned"]["field_f1"].mean > arms["zero_shot"]["field_f1"].mean + 0.2
    assert arms["tuned"]["valid_json"].mean > 0.6
    scores = [f1(row.arms["tuned"].text, row.reference) for row in predictions]
    assert sum(scores) / len(scores) == pytest.approx(arms["tuned"]["field_f1"].mean)
    assert result.training.validation_loss < 0.4


def test_another_quantization_and_adapter_on_the_embedded_model(finished):
    settings = "quantization=fp4 adapter=dora adapter.r=4 adapter.bias=lora_only trainer.learning_rate=1e-4"
    _, result, _ = finished(*settings.split(), "trainer.max_steps=3", "eval.max_prompts=4", "eval.retention=false")
    assert result.training.steps == 3


def test_where_prompting_suffices_the_verdict_says_so(finished):
    done, result, _ = finished("data=usaddress_zip", "trainer.max_steps=10", "eval.retention=false")
    assert "Prompting is enough: tuned is not better than 3-shot" in done.stdout
    assert result.evaluation.verdict.kind == "prompting_is_enough"
    zero_shot, few_shot = (result.evaluation.arms[arm].scores["exact_match"].mean for arm in ("zero_shot", "few_shot"))
    assert zero_shot < 0.2 < 0.9 < few_shot
    assert result.evaluation.prompts == 100
