"""A run is known by its settings; its folder belongs to one run, and to one process at a time."""

import json
import os
import platform

import pytest
from support.run_folders import write_run

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.folder import (
    complete_result,
    cost_key,
    hold_run,
    list_checkpoints,
    move_aside,
    rows_key,
    run_folder,
    run_identity,
    run_labels,
)
from finetune.runs.lock import BusyError, is_locked, lock_folder


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
    assert not is_locked(folder)
    with hold_run(config, folder):
        assert is_locked(folder)
        assert (folder / "config.yaml").read_text().startswith(f"# identity: {run_identity(config)}\n")
    assert not is_locked(folder)
    held = rf"another process is at this run \(process {os.getpid()} on {platform.node()}\)"
    with lock_folder(folder), pytest.raises(BusyError, match=held):
        hold_run(config, folder).__enter__()


def test_a_run_that_another_process_completed_is_not_begun(tmp_path):
    folder = write_run(tmp_path / "run", "seed=3", tuned=["0"])
    config = compose_config(["seed=3", "data.metrics=[exact_match]"])
    assert complete_result(config, folder).seed == 3
    with pytest.raises(BusyError, match="has completed this run"), hold_run(config, folder):
        pass


def test_a_name_of_another_run_is_refused_with_what_differs(tmp_path):
    with hold_run(compose_config(["name=one"]), tmp_path):
        pass
    with pytest.raises(UserError, match=r"holds another run; different: adapter\.r=4 \(there: 16\)\. Choose another"):
        complete_result(compose_config(["name=one", "adapter.r=4"]), tmp_path)
    assert complete_result(compose_config(["name=one", "tracking=none"]), tmp_path) is None


def test_files_that_changed_since_are_named_where_the_run_is_refused(tmp_path, monkeypatch):
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    named = ["name=one", "data=local", f"data.path={rows}", "model=local", f"model.path={tmp_path / 'model'}"]
    config = compose_config(named)
    with hold_run(config, tmp_path / "one"):
        pass
    rows.write_text('{"prompt": "a", "completion": "c"}\n')
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as error:
        complete_result(config, tmp_path / "one")
    assert (
        f"different: the contents of {rows} or of its held-out files, 2 processes (there: 1), "
        f"the contents of {tmp_path / 'model' / 'config.json'}. Choose another name=NAME" in str(error.value)
    )


def test_a_run_that_is_refused_at_once_leaves_no_folder(tmp_path):
    def refuse(message):
        with hold_run(compose_config(["name=one"]), tmp_path / "one"):
            (tmp_path / "one" / "log.txt").write_text("what was printed")
            raise UserError(message)

    with pytest.raises(UserError, match="row 3 is wrong"):
        refuse("row 3 is wrong")
    assert not (tmp_path / "one").exists()
    (tmp_path / "one" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(UserError, match="the network is gone"):
        refuse("the network is gone")
    assert (tmp_path / "one" / "checkpoints" / "checkpoint-4").exists()


def test_overwrite_moves_what_was_there_aside_but_not_what_it_has_begun_itself(tmp_path):
    write_run(tmp_path / "one", "seed=3", tuned=["0"])
    before = compose_config(["name=one", "seed=3", "data.metrics=[exact_match]"])
    (tmp_path / "one" / "config.yaml").write_text(f"# identity: {run_identity(before)}\nseed: 3\n")
    config = compose_config(["name=one", "overwrite=true"])
    assert move_aside(before, tmp_path / "one") is None
    assert move_aside(config, tmp_path / "one") == tmp_path / "one-before-1"
    assert json.loads((tmp_path / "one-before-1" / "result.json").read_text())["status"] == "complete"
    assert move_aside(config, tmp_path / "one") is None  # there is nothing
    with hold_run(config, tmp_path / "one"):
        pass
    assert move_aside(config, tmp_path / "one") is None  # begun by such a command, and unfinished
    other = compose_config(["name=one", "overwrite=true", "seed=9"])
    assert move_aside(other, tmp_path / "one") == tmp_path / "one-before-2"
