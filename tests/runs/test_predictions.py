"""predictions.jsonl holds what each arm answered, and says nothing of what was not asked for."""

from finetune.runs.files import read_jsonl
from finetune.runs.predictions import Answered, Prediction, read_predictions, write_predictions

PROMPT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Say\u2028it"}]


def test_what_is_read_is_what_was_written(tmp_path):
    few_shot = Answered({"chrf": 0.75}, "a", True, demonstrations=["a:7", "a:9"])
    arms = {"few_shot": few_shot, "tuned": Answered({"chrf": 0.0}, "", False, 2.5, 4)}
    predictions = [Prediction("a:1", PROMPT, "b", arms), Prediction("a:2", [], "text", {"tuned": Answered({})})]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    assert read_predictions(tmp_path / "predictions.jsonl") == predictions


def test_arms_stand_beside_the_prompt_without_what_was_not_asked_for(tmp_path):
    reply = Answered({"perplexity": 2.0}, nll=2.5, tokens=4)
    write_predictions(tmp_path / "predictions.jsonl", [Prediction("a:1", PROMPT, "b", {"tuned": reply})])
    [row] = read_jsonl(tmp_path / "predictions.jsonl")
    assert row == {
        "place": "a:1", "prompt": PROMPT, "reference": "b",
        "tuned": {"scores": {"perplexity": 2.0}, "nll": 2.5, "tokens": 4},
    }  # fmt: skip


def test_where_no_answer_was_asked_for_its_text_is_empty():
    assert Answered({}, "a").text == "a" and Answered({}).text == ""


def test_the_question_is_the_last_message():
    assert Prediction("a:1", PROMPT, "b", {}).question == "Say\u2028it"
    assert Prediction("a:1", [], "plain text", {}).question == ""
