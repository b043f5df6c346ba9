"""Seconds for each part of the work: of a stated rate, of a few layers, and as they are measured."""

import time
from dataclasses import replace

import pytest
from support.plans import answers, planned_run, without_weights, workload

from finetune.planning.plan import make_plan
from finetune.planning.throughput import Stopwatch, Throughput, extrapolate_depth, throughput_from_rate

RATE = 1e12


def test_each_layer_that_was_not_measured_takes_as_long_as_those_between():
    shallow = Throughput(load=1.0, train_position=2.0, forward_position=1.0, update=0.5, decode_step=3.0, untuned=0.7)
    deep = replace(shallow, load=4.0, train_position=5.0, decode_step=2.0, untuned=0.9)
    whole = extrapolate_depth(shallow, deep, 4, 10)
    assert (whole.load, whole.train_position, whole.forward_position) == (10.0, 11.0, 1.0)
    assert whole.decode_step == 2.0  # noise: more layers are never taken to be faster
    assert whole.untuned == 0.9  # a share, which does not grow


def test_a_rate_gives_the_time_of_the_matrix_products(tiny_run):
    prepared = planned_run(*tiny_run).prepared
    work = workload(answers=answers(25, 10, 8, [5] * 25), few_shot=answers(25, 5, 8, [5] * 25))
    speed = throughput_from_rate(prepared, work, RATE)
    meta_model = prepared.meta_model
    assert speed.forward_position == pytest.approx(2 * meta_model.num_parameters() / RATE)  # the head is tied
    assert speed.train_position == 2 * speed.forward_position
    assert speed.prefill == pytest.approx(10 * 3 * speed.forward_position)  # of one batch
    assert speed.few_shot_prefill == pytest.approx(5 * 3 * speed.forward_position)
    assert speed.decode_row == speed.few_shot_row == pytest.approx(10 * speed.forward_position)
    faster = throughput_from_rate(prepared, work, 2 * RATE)
    assert faster.train_position == pytest.approx(speed.train_position / 2) and faster.load == speed.load


def test_a_rate_gives_no_time_for_answers_that_nobody_asks_for(tiny_run):
    speed = throughput_from_rate(planned_run(*tiny_run).prepared, workload(), RATE)
    assert speed.prefill == speed.few_shot_prefill == 0.0


@pytest.mark.slow
def test_the_throughput_is_measured_where_none_is_stated(tiny_run):
    plan = make_plan(planned_run(*tiny_run), 0.0)
    assert plan.seconds.keys() == {"prepare", "load", "train", "evaluate"}
    assert all(seconds > 0 for seconds in plan.seconds.values())
    assert "measured" in plan.measured


def test_a_call_is_as_long_as_its_fastest_repetition_and_a_busy_machine_is_remarked():
    watch, pauses = Stopwatch(), iter([0.2, 0.02, 0.3, 0.02, 0.02])
    assert watch.seconds(lambda: time.sleep(next(pauses))) < 0.2
    assert watch.scatter > 2 and "it was busy: the same took up to" in watch.remark
    assert Stopwatch().remark == ""


def test_a_head_that_is_not_tied_is_counted_once_and_embeddings_are_only_looked_up(tmp_path, tiny_run):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = without_weights(tmp_path / "untied", vocab_size=49152, tie_word_embeddings=False, **shape)
    prepared = planned_run(*tiny_run, *model).prepared
    multiplied = prepared.meta_model.num_parameters() - 49152 * 32
    assert throughput_from_rate(prepared, workload(), RATE).forward_position == pytest.approx(2 * multiplied / RATE)
