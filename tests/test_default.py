"""The embedded model on the embedded data, as `make demo` runs them."""

import json

import pytest
from sklearn.metrics import f1_score

pytestmark = pytest.mark.slow


def f1(answer, reference):
    """Field F1 by scikit-learn: every pair of either side is a label, which the one should have and the other has."""
    try:
        given, known = (json.loads(text, object_pairs_hook=list) for text in (answer, reference))
        given, known = ({key: str(value).strip() for key, value in pairs} for pairs in (given, known))
    except (ValueError, TypeError):
        return 0.0
    if len(given) < answer.count('":'):  # a key stands there twice
        return 0.0
    given, known = set(given.items()), set(known.items())
    pairs = [*(given | known)]
    return f1_score([pair in known for pair in pairs], [pair in given for pair in pairs])


def test_the_default_run_beats_the_base_by_a_wide_margin(program, tmp_path):
    done = program("tracking=none", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [file] = tmp_path.glob("*/result.json")
    result, predictions = json.loads(file.read_text()), file.with_name("predictions.jsonl")
    arms = result["evaluation"]["arms"]
    assert list(arms) == ["zero_shot", "few_shot", "tuned"]
    assert all(arm["field_f1"]["low"] <= arm["field_f1"]["mean"] <= arm["field_f1"]["high"] for arm in arms.values())
    assert result["evaluation"]["verdict"]["kind"] == "tuning_wins"
    assert result["evaluation"]["verdict"]["sentence"] in " ".join(done.stdout.split())
    assert arms["tuned"]["field_f1"]["mean"] > arms["zero_shot"]["field_f1"]["mean"] + 0.2
    assert arms["tuned"]["valid_json"]["mean"] > 0.6
    rows = [json.loads(line) for line in predictions.read_text().split("\n") if line]
    scores = [f1(row["tuned"]["answer"], row["reference"]) for row in rows]
    assert sum(scores) / len(scores) == pytest.approx(arms["tuned"]["field_f1"]["mean"])
    assert result["training"]["validation_loss"] < 0.4


def test_another_quantization_and_adapter_on_the_embedded_model(program, tmp_path):
    settings = "quantization=fp4 adapter=dora adapter.r=4 adapter.bias=lora_only trainer.learning_rate=1e-4"
    few = ["trainer.max_steps=3", "eval.max_prompts=4", "tracking=none", f"output_dir={tmp_path}"]
    done = program(*settings.split(), *few)
    assert done.returncode == 0, done.stderr
    [file] = tmp_path.glob("*/result.json")
    assert json.loads(file.read_text())["training"]["steps"] == 3


def test_where_prompting_suffices_the_verdict_says_so(program, tmp_path):
    done = program(
        "data=usaddress_zip", "trainer.max_steps=10", "eval.retention=false", "tracking=none", f"output_dir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert "Prompting is enough: tuned is not better than 3-shot" in done.stdout
    [file] = tmp_path.glob("*/result.json")
    outcome = json.loads(file.read_text())["evaluation"]
    assert outcome["verdict"]["kind"] == "prompting_is_enough"
    assert (
        outcome["arms"]["zero_shot"]["exact_match"]["mean"]
        < 0.2
        < 0.9
        < outcome["arms"]["few_shot"]["exact_match"]["mean"]
    )
    assert outcome["prompts"] == 100
