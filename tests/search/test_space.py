"""A space is read from a preset and the command line, and says what it holds."""

import pytest
from support.searches import CONDITIONS, PARAMS

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.search.space import default_values, experiment_yaml, fixed_overrides, point_overrides, read_space

SPACE = read_space(PARAMS, [], CONDITIONS)


def test_the_command_lines_range_replaces_the_presets():
    arguments = ["seed=7", "adapter.r=choice(2,64)"]
    dimensions = {dimension.key: dimension for dimension in read_space(PARAMS, arguments, CONDITIONS).dimensions}
    assert dimensions["adapter.r"].choices == ("2", "64") and "seed" not in dimensions
    rate, batch = dimensions["trainer.learning_rate"], dimensions["trainer.per_device_train_batch_size"]
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 1e-2, True, False)
    assert (batch.low, batch.high, batch.whole) == (1, 8, True)
    assert fixed_overrides(arguments) == ["seed=7"]


@pytest.mark.parametrize(
    ("params", "conditions", "message"),
    [
        ({"adapter.r": "8"}, {}, "adapter.r=8: it is no range to search. Write choice(4,8,16)"),
        ({"adapter.r": "interval(8,4)"}, {}, "expected a lower and a higher number"),
        ({"adapter.r": "tag(log,interval(0,4))"}, {}, "both above 0 for log"),
        ({"adapter.r": "range(4,inf)"}, {}, "the range has no end"),
        ({"adapter.r": "4,8"}, {"adapter.r": "adapter=lora"}, "both settings are searched"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(params, conditions, message):
    with pytest.raises(UserError) as told:
        read_space(params, [], conditions)
    assert message in str(told.value)


def test_the_boundary_holds_every_choice_and_every_end_of_a_range():
    points = list(SPACE.boundary_points())
    assert {point["adapter.r"] for point in points} == {"4", "8", "16"}
    assert {point["trainer.learning_rate"] for point in points} == {1e-5, 1e-2}
    assert {point["trainer.per_device_train_batch_size"] for point in points} == {1, 8}
    dropouts = {point["adapter"]: point.get("adapter.lora_dropout") for point in points}
    assert dropouts["rslora"] is None and dropouts["lora"] is not None


def test_a_grid_holds_each_combination_once_and_no_interval():
    space = read_space({"adapter": "lora,rslora", "adapter.r": "4,8"}, [], {"adapter.r": "adapter=lora"})
    assert space.grid() == [
        {"adapter": "lora", "adapter.r": "4"},
        {"adapter": "lora", "adapter.r": "8"},
        {"adapter": "rslora"},
    ]
    with pytest.raises(UserError, match=r"trainer.learning_rate is an interval; give choice"):
        SPACE.grid()


def test_defaults_are_matched_by_value_and_those_outside_are_named():
    space = read_space({"adapter.r": "4,8", "adapter.lora_dropout": "interval(0.0,0.1)", "seed": "range(1,3)"}, [], {})
    default = {"adapter.r": 8, "adapter.lora_dropout": 0, "seed": 42}.get
    assert space.defaults(default) == {"adapter.r": "8", "adapter.lora_dropout": 0.0}
    assert space.defaults_outside(default) == {"seed": 42}


def test_the_default_of_a_group_is_its_option_and_of_a_setting_its_value():
    default = default_values(compose_config(["adapter.r=8"]), {"adapter": "lora"})
    assert (default("adapter"), default("adapter.r"), default("trainer.no_such")) == ("lora", 8, None)


def test_a_point_is_written_as_overrides_and_overrides_as_an_experiment():
    overrides = point_overrides({"adapter": "rslora", "adapter.r": "8", "trainer.learning_rate": 1e-05})
    assert overrides == ["adapter=rslora", "adapter.r=8", "trainer.learning_rate=1e-05"]
    written = "defaults:\n- override /adapter: rslora\nadapter:\n  r: 8\ntrainer:\n  learning_rate: 1.0e-05\n"
    assert experiment_yaml(overrides) == written
