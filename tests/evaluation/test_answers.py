"""The arms of a run, what they share with other runs, and what is concluded from them."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sacrebleu
from bitsandbytes.nn import Linear4bit
from scipy import stats
from support import builds

import run
from finetune.cli.compose import compose_config
from finetune.data.embedded import cache_folder
from finetune.data.splits import Example
from finetune.errors import UserError
from finetune.evaluation import answers
from finetune.evaluation.answer_cache import AnswerCache, Reply
from finetune.evaluation.answers import _answer_base, _unpacked, answer_prompts
from finetune.evaluation.generate import cache_bytes
from finetune.evaluation.prompts import PromptSet, choose_prompts
from finetune.evaluation.verdict import _plain
from finetune.machine import device
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base, weights_digest


def finished(*overrides):
    """The result and the predictions of a run, made in this process."""
    config = compose_config([*overrides])
    run.run(config)
    folder = run.checkpoint.folder(config)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "result.json").read_text()), [json.loads(line) for line in lines]


def chosen(overrides):
    prepared = builds.prepared(overrides)
    return prepared, choose_prompts(compose_config(overrides), prepared)


# Independent of metrics.py.
BY_HAND = {
    "exact_match": lambda answer, reference: float(answer.strip() == reference.strip()),
    "chrf": lambda answer, reference: sacrebleu.sentence_chrf(answer, [reference]).score / 100,
}


@pytest.mark.slow
def test_scores_and_intervals_follow_from_the_predictions(tiny_run):
    learning = ["trainer.learning_rate=5e-2", "trainer.max_steps=6", "eval.max_new_tokens=40"]
    result, rows = finished(*tiny_run, *learning, "data.metrics=[chrf,exact_match]", "eval.max_prompts=12")
    arms = result["evaluation"]["arms"]
    for arm in ("zero_shot", "few_shot", "tuned"):
        for name in ("chrf", "exact_match"):
            judge_one = BY_HAND[name]
            draws = [[reply["answer"] for reply in row[arm].get("draws", [row[arm]])] for row in rows]
            scores = [
                sum(judge_one(answer, row["reference"]) for answer in answers) / len(answers)
                for answers, row in zip(draws, rows, strict=True)
            ]
            assert [row[arm]["scores"][name] for row in rows] == pytest.approx(scores)
            assert arms[arm][name]["mean"] == pytest.approx(sum(scores) / len(scores))
    scores = [row["tuned"]["scores"]["chrf"] for row in rows]
    base = [row["zero_shot"]["scores"]["chrf"] for row in rows]
    apart = [tuned - untuned for tuned, untuned in zip(scores, base, strict=True)]
    for values, found in (
        (scores, arms["tuned"]["chrf"]),
        (apart, result["evaluation"]["differences"]["zero_shot"]["chrf"]),
    ):
        ends = stats.bootstrap((values,), lambda x, axis: x.mean(axis=axis), method="BCa", rng=42, n_resamples=9999)
        assert [found["low"], found["high"]] == pytest.approx(list(ends.confidence_interval))


@pytest.mark.slow
def test_the_verdict_is_on_the_best_way_of_prompting(tiny_run):
    result, _ = finished(*tiny_run, "data.metrics=[chrf]", "eval.max_prompts=12")
    outcome = result["evaluation"]
    base = {arm: outcome["arms"][arm]["chrf"]["mean"] for arm in ("zero_shot", "few_shot")}
    against = outcome["verdict"]["against"]
    assert base[against] == max(base.values())
    apart = outcome["differences"][against]["chrf"]
    assert apart["mean"] == pytest.approx(outcome["arms"]["tuned"]["chrf"]["mean"] - base[against])
    assert apart["low"] <= apart["mean"] <= apart["high"] and 0 <= apart["p"] <= 1


def test_examples_of_few_shot_prompts_are_training_rows_and_the_same_for_every_prompt_of_a_draw(tiny_run):
    prepared, prompts = chosen([*tiny_run, "eval.shots=2", "eval.draws=3"])
    assert len(prompts.few_shot) == 3
    assert len({tuple(example.place for example in draw.shown) for draw in prompts.few_shot}) == 3
    for draw in prompts.few_shot:
        assert all(example in prepared.splits.train for example in draw.shown)
        for asked, plain in zip(draw.examples, prompts.examples, strict=True):
            system, *turns, last = asked.prompt
            assert [system, last] == plain.prompt
            assert [turn["content"] for turn in turns[1::2]] == [example.completion for example in draw.shown]
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2


def test_without_shots_there_is_no_few_shot_arm(tiny_run):
    assert list(chosen([*tiny_run, "eval.shots=0"])[1].arms()) == ["zero_shot", "tuned"]


@pytest.mark.slow
def test_the_tuned_model_can_be_prompted_with_examples_too(tiny_run):
    result, rows = finished(*tiny_run, "eval.tuned_few_shot=true")
    assert list(result["evaluation"]["arms"]) == ["zero_shot", "few_shot", "tuned", "tuned_few_shot"]
    assert len(rows[0]["tuned_few_shot"]["draws"]) == 2
    assert result["evaluation"]["verdict"]["against"] in ("zero_shot", "few_shot")


@pytest.mark.slow
def test_another_seed_trains_otherwise_on_the_same_splits_prompts_and_examples(tiny_run):
    first, second = (chosen([*tiny_run, f"seed={seed}"]) for seed in (1, 2))
    assert first[0].splits == second[0].splits
    assert first[1].examples == second[1].examples
    assert [draw.shown for draw in first[1].few_shot] == [draw.shown for draw in second[1].few_shot]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("eval.shots=33", "eval.shots=33: there are only 32 training rows"),
        ("eval.shots=20", "with its 20 examples; with answers of up to 8 it does not fit the model's context of 1,024"),
        ("eval.max_new_tokens=1000", "does not fit the model's context of 1,024. Lower eval.max_new_tokens"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused_before_the_model_loads(tiny_run, setting, expected):
    with pytest.raises(UserError) as error:
        chosen([*tiny_run, setting])
    assert expected in str(error.value)


# -- answers of the base that are known -------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache but for the embedded model and data."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for path in cache_folder().iterdir():
        if path.name != "base_answers":
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    return folder / "base_answers"


def reused(result):
    return {arm: found["reused"] for arm, found in result["evaluation"]["arms"].items()}


@pytest.mark.slow
def test_a_second_run_reuses_the_answers_of_the_same_base(tiny_run, cache):
    first, rows = finished(*tiny_run)
    assert reused(first) == {"zero_shot": False, "few_shot": False, "tuned": False}
    second, again = finished(*tiny_run, "trainer.learning_rate=1e-2", "adapter=dora", "seed=7")
    assert reused(second) == {"zero_shot": True, "few_shot": True, "tuned": False}
    for arm in ("zero_shot", "few_shot"):
        assert [row[arm] for row in again] == [row[arm] for row in rows]
        assert second["evaluation"]["arms"][arm]["seconds"] < first["evaluation"]["arms"][arm]["seconds"] / 3


@pytest.mark.slow
def test_two_runs_that_start_together_answer_for_the_base_once(tiny_run, cache, tmp_path):
    script = Path(__file__).parents[2] / "run.py"
    commands = [[sys.executable, script, *tiny_run, f"trainer.learning_rate={rate}"] for rate in (1e-3, 1e-4)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    how = [line for text in told for line in text.splitlines() if "zero-shot: 4 prompts" in line]
    assert sorted(line.split()[3] for line in how) == ["answered", "as"]
    assert len(list(cache.glob("*.json"))) == 3  # two draws of examples, which they may have shared
    results = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/result.json")]
    base = [result["evaluation"]["arms"]["zero_shot"]["field_f1"] for result in results]
    assert base[0] == base[1]


def keys(overrides, monkeypatch):
    """What the base's replies of a run are remembered under."""
    asked = []

    def recall(memory, depends_on, compute, wait):
        asked.append(memory.key(depends_on))
        return [Reply(None, None)] * 4, False

    monkeypatch.setattr(AnswerCache, "recall", recall)
    monkeypatch.setattr(answers, "_reply", lambda *_: [])
    config = compose_config(overrides)
    prepared, prompts = chosen(overrides)
    base = load_base(config.model, config.quantization, run_device(config))
    answer_prompts(base, prepared.tokenizer, prompts, {}, lambda *_: None, lambda *_: None)
    return set(asked)


@pytest.mark.slow
def test_answers_to_other_prompts_decoded_otherwise_or_of_another_base_are_not_reused(tiny_run, monkeypatch):
    before = keys(tiny_run, monkeypatch)
    assert len(before) == 3
    assert before == keys([*tiny_run, "trainer.learning_rate=1e-2", "seed=3"], monkeypatch)
    for change in (
        "data.system=Answer.",
        "eval.max_new_tokens=9",
        "eval.temperature=0.5",
        "eval.batch_size=3",
        "quantization=nf4",
        "data.seed=1",
        "model.dtype=bfloat16",
        "model.attn_implementation=eager",
        "data.metrics=[perplexity]",
    ):
        assert not before & keys([*tiny_run, change], monkeypatch), change


@pytest.mark.slow
def test_another_draw_of_examples_is_computed_and_the_known_ones_are_not(tiny_run, cache):
    finished(*tiny_run)
    before = set(cache.glob("*.json"))
    finished(*tiny_run, "eval.draws=3")
    assert len(set(cache.glob("*.json")) - before) == 1


def test_weights_that_changed_by_one_number_have_another_digest(tiny_run):
    config = compose_config(tiny_run)
    machine = run_device(config)
    base = load_base(config.model, config.quantization, machine)
    plain = weights_digest(base)
    assert weights_digest(add_adapter(base, config.adapter, seed=1)) == plain
    base.model.embed_tokens.weight.data[5, 5] += 1
    assert weights_digest(base) != plain


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_weights_are_dequantised_once_where_that_fits_below_the_peak(tiny_run, monkeypatch, quantization, fits):
    asked = [*tiny_run, f"quantization={quantization}"]
    config = compose_config(asked)
    _, prompts = chosen(asked)
    base = load_base(config.model, config.quantization, run_device(config))
    weights = [layer.weight.quant_state.shape.numel() for layer in base.modules() if isinstance(layer, Linear4bit)]
    sizes = []
    monkeypatch.setattr(device, "fits_below_peak", lambda size: sizes.append(size) or fits)
    with _unpacked(base, prompts):
        changed = [layer for layer in base.modules() if "forward" in vars(layer)]
    assert len(changed) == (len(weights) if fits else 0)
    assert bool(sizes) == (quantization == "nf4")
    tokens = max(map(len, prompts.few_shot[0].tokenized["input_ids"])) + prompts.max_new_tokens
    cache = len(prompts.examples) * cache_bytes(base, tokens)
    assert all(4 * sum(weights) + cache < size < 4 * sum(weights) + 3 * cache for size in sizes)


def run_device(config):
    return choose_device(config.model, config.quantization, config.adapter)


def test_of_two_that_ask_the_same_at_once_one_computes_and_the_other_waits(cache):
    memory = AnswerCache({"weights": "w"})
    computed, found = [], []

    def compute():
        computed.append(1)
        threading.Event().wait(0.3)
        return [Reply(None, (1.5, 3))]

    asking = [threading.Thread(target=lambda: found.append(memory.recall({"a": 1}, compute, True))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(computed) == 1
    assert [replies for replies, _ in found] == [[Reply(None, (1.5, 3))]] * 4
    assert sorted(known for _, known in found) == [False, True, True, True]


def test_what_another_run_is_answering_is_left_to_it_and_taken_from_it_later(cache, monkeypatch):
    memory = AnswerCache({"weights": "w"})
    draws = [PromptSet([Example([], letter, "")], None, []) for letter in "abc"]
    begun, done, order = threading.Event(), threading.Event(), []

    def reply(model, tokenizer, prompts, draw, advance):
        order.append(draw.examples[0].completion)
        return [Reply(None, (float(ord(order[-1])), 1))]

    def slowly():
        begun.set()
        done.wait(10)
        return [Reply(None, (7.0, 1))]

    monkeypatch.setattr(AnswerCache, "of", lambda base: memory)
    monkeypatch.setattr(answers, "_depends_on", lambda tokenizer, prompts, draw: {"a": draw.examples[0].completion})
    monkeypatch.setattr(answers, "_reply", reply)
    other = threading.Thread(target=memory.recall, args=({"a": "a"}, slowly, True))
    other.start()
    begun.wait(10)
    threading.Timer(0.3, done.set).start()
    base = {"zero_shot": draws[:1], "few_shot": draws[1:]}
    arms = _answer_base(None, None, None, base, lambda *_: None, lambda *_: None)
    other.join()
    assert order == ["b", "c"]
    assert {name: arm.reused for name, arm in arms.items()} == {"few_shot": False, "zero_shot": True}
    told = {name: [reply.likelihood[0] for [reply] in arm.replies] for name, arm in arms.items()}
    assert told == {"few_shot": [98.0, 99.0], "zero_shot": [7.0]}


def test_an_end_that_nobody_knows_is_null_in_json():
    from finetune.evaluation.statistics import Interval

    assert _plain(Interval(2.0, float("-inf"), float("inf"))) == {"mean": 2.0, "low": None, "high": None}
