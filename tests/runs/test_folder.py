"""A run is known by its settings; its folder belongs to one run, and to one process at a time."""

import pytest
from filelock import FileLock
from support.run_folders import write_run

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.folder import (
    BusyError,
    complete_result,
    cost_key,
    hold_run,
    is_run_held,
    list_checkpoints,
    rows_key,
    run_folder,
    run_identity,
    run_labels,
)


def test_a_setting_that_changes_no_number_changes_no_identity():
    plain = run_identity(compose_config([]))
    for same in ("tracking=none", "name=mine", "output_dir=elsewhere", "trainer.logging_steps=3", "force=true"):
        assert run_identity(compose_config([same])) == plain
    for other in ("seed=1", "adapter.r=8", "trainer.learning_rate=3e-3", "eval.shots=1"):
        assert run_identity(compose_config([other])) != plain


@pytest.mark.parametrize(
    ("override", "same_rows", "same_cost"),
    [
        ("trainer.learning_rate=3e-3", True, True),
        ("trainer.logging_steps=3", True, True),
        ("seed=7", True, True),
        ("trainer.max_steps=9", True, False),
        ("adapter.r=4", True, False),
        ("trainer.max_length=64", False, False),
        ("data.seed=7", False, False),
        ("data.max_train_rows=64", False, False),
    ],
)
def test_a_setting_changes_the_rows_the_cost_or_neither(override, same_rows, same_cost):
    plain, other = compose_config([]), compose_config([override])
    assert (rows_key(plain) == rows_key(other)) == same_rows
    assert (cost_key(plain) == cost_key(other)) == same_cost


@pytest.mark.parametrize(
    ("overrides", "tags", "group"),
    [
        ([], ["smollm2_135m", "usaddress", "nf4", "lora"], "smollm2_135m-usaddress"),
        (["quantization=int8", "adapter=rslora"], ["smollm2_135m", "usaddress", "int8", "rslora"], None),
        (["quantization=none", "adapter=dora"], ["smollm2_135m", "usaddress", "unquantised", "dora"], None),
        (["quantization=none", "adapter=full"], ["smollm2_135m", "usaddress", "unquantised", "full"], None),
        (["sweep.name=ranks"], ["smollm2_135m", "usaddress", "nf4", "lora", "ranks"], "ranks"),
    ],
)
def test_the_labels_say_what_is_trained_on_what_and_in_which_sweep(overrides, tags, group):
    config = compose_config(overrides)
    labels = run_labels(config)
    assert labels.tags == tags and labels.group == (group or "smollm2_135m-usaddress")
    assert labels.name == run_folder(config).name and labels.job_type == "train"


def test_checkpoints_are_listed_from_the_newest_without_those_set_aside(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "broken-checkpoint-11", ".unfinished/checkpoint-12"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_folder_is_held_by_one_process_and_says_which_run_it_holds(tmp_path):
    config, folder = compose_config(["name=one"]), tmp_path / "one"
    assert not is_run_held(folder)
    with hold_run(config, folder, is_main_process=True):
        assert is_run_held(folder)
        assert (folder / "config.yaml").read_text().startswith(f"# identity: {run_identity(config)}\n")
    assert not is_run_held(folder)
    with FileLock(folder / ".lock"), pytest.raises(BusyError, match="another process is at this run"):
        hold_run(config, folder, is_main_process=True).__enter__()


def test_a_run_that_another_process_completed_is_not_begun(tmp_path):
    folder = write_run(tmp_path / "run", "seed=3", tuned=["0"])
    config = compose_config(["seed=3", "data.metrics=[exact_match]"])
    assert complete_result(config, folder).seed == 3
    with pytest.raises(BusyError, match="has completed this run"), hold_run(config, folder, is_main_process=True):
        pass


def test_a_name_of_another_run_is_refused_with_what_differs(tmp_path):
    with hold_run(compose_config(["name=one"]), tmp_path, is_main_process=True):
        pass
    with pytest.raises(UserError, match=r"holds another run; different: adapter\.r=4 \(there: 16\)\. Choose another"):
        complete_result(compose_config(["name=one", "adapter.r=4"]), tmp_path)
    assert complete_result(compose_config(["name=one", "tracking=none"]), tmp_path) is None
