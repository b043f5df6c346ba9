"""The program as a user runs it, on a tiny model with random weights."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

import run
from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.folder import run_folder

CONVERSATION = [("user", "Say {0}"), ("assistant", "{0}!"), ("user", "Again"), ("assistant", "{0}, {0}!")]


def rows(recipe, count=20):
    """Rows in the shape that the recipe reads."""

    def chat(i, role, content, names):
        return [{role: names.get(r, r), content: text.format(i)} for r, text in CONVERSATION]

    shapes = {
        "prompt_completion": lambda i: {"prompt": f"Say {i}", "completion": f"{i}!"},
        "messages": lambda i: {"messages": chat(i, "role", "content", {})},
        "alpaca": lambda i: {"instruction": "Say it", "input": f"{i}", "output": f"{i}!"},
        "sharegpt": lambda i: {"conversations": chat(i, "from", "value", {"user": "human", "assistant": "gpt"})},
        "text": lambda i: {"text": f"Once upon a time there were {i} little pigs."},
    }
    return [shapes[recipe](i) for i in range(count)]


def in_this_process(*overrides):
    """What `python run.py OVERRIDES` leaves: its result, its predictions and its folder."""
    config = compose_config(list(overrides))
    run.run(config)
    folder = run_folder(config)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "result.json").read_text()), [json.loads(line) for line in lines], folder


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0, msg=name)


def test_a_run_leaves_its_files_and_started_again_it_only_shows_them(program, tiny_run, tmp_path):
    first = program(*tiny_run, "quantization=nf4")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "tuned - " in first.stdout and "validation loss" in first.stdout
    assert "weights: nf4, what is not quantised in float32; computed in float32" in first.stdout
    [folder] = (tmp_path / "outputs").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "adapter", "predictions.jsonl", "history.jsonl", "result.json", "log.txt"} <= names
    result = json.loads((folder / "result.json").read_text())
    assert result["name"] == folder.name and result["status"] == "complete" and result["seed"] == 42
    assert set(result["training"]) >= {
        "steps", "tokens", "loss_tokens", "seconds", "tokens_per_second", "train_loss", "validation_loss",
        "peak_memory_bytes",
    }  # fmt: skip
    assert result["data"]["splits"]["train"].keys() >= {"rows", "tokens", "loss_tokens"}
    assert result["model"]["trainable_parameters"] < result["model"]["parameters"]
    assert result["evaluation"]["prompts"] == 4 and result["evaluation"]["split"] == "test"
    assert set(result["evaluation"]["arms"]) == {"zero_shot", "few_shot", "tuned"}
    assert result["evaluation"]["verdict"]["sentence"] in " ".join(first.stdout.split())
    assert result["seconds"].keys() == {"load", "prepare", "train", "evaluate", "judge"}
    assert "wandb" not in names

    started = time.perf_counter()
    second = program(*tiny_run, "quantization=nf4")
    assert second.returncode == 0 and second.stderr == ""
    assert "is complete" in second.stdout and folder.name in second.stdout.replace("\n", "")
    assert time.perf_counter() - started < 5
    assert json.loads((folder / "result.json").read_text()) == result


def test_a_plain_peft_script_gives_the_same_answers(tiny_run, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = ["trainer.learning_rate=5e-2", "trainer.max_steps=6"]
    _, predictions, folder = in_this_process(*tiny_run, *settings)
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, folder / "adapter")
    for row in predictions:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = tuned.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == row["tuned"]["answer"]
    assert any(row["tuned"]["answer"] != row["zero_shot"]["answer"] for row in predictions)


OFTEN = [("nf4", "lora"), ("fp4", "dora")]
RARELY = sorted(set(itertools.product(("nf4", "fp4", "int8", "none"), ("lora", "dora", "rslora"))) - set(OFTEN))


@pytest.mark.parametrize(
    ("quantization", "adapter"), [*OFTEN, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in RARELY)]
)
def test_every_adapter_trains_on_every_quantization(tiny_run, quantization, adapter):
    settings = ["adapter.r=4", "adapter.bias=lora_only", "trainer.learning_rate=1e-2"]
    result, _, folder = in_this_process(*tiny_run, f"quantization={quantization}", f"adapter={adapter}", *settings)
    assert result["training"]["steps"] == 3
    learnt = [tensor for name, tensor in weights(folder).items() if "lora_B" in name]
    assert len(learnt) == 2 * 7
    assert all(tensor.abs().sum() > 0 and tensor.dtype == torch.float32 for tensor in learnt)


@pytest.mark.slow
def test_all_weights_can_be_trained(tiny_run, tiny_model):
    result, predictions, folder = in_this_process(*tiny_run, "adapter=full", "trainer.learning_rate=5e-2")
    assert result["model"]["trainable_parameters"] == result["model"]["parameters"]
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    assert any(row["tuned"]["answer"] != row["zero_shot"]["answer"] for row in predictions)


@pytest.mark.parametrize("recipe", ["prompt_completion", "messages", "alpaca", "sharegpt", "text"])
def test_a_users_file_is_trained_on_in_each_shape(tiny_run, tmp_path, recipe):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(recipe)))
    result, predictions, folder = in_this_process(*tiny_run, "data=local", f"data.path={file}", f"data.recipe={recipe}")
    assert folder.name.startswith("local-mine-")
    assert result["data"]["counts"] | {"rows": 20, "train": 16, "validation": 2, "test": 2} == result["data"]["counts"]
    assert set(result["evaluation"]["arms"]["tuned"]["scores"]) & {"chrf", "perplexity"}
    assert all(row["place"].startswith(f"{file}:") and row["tuned"]["scores"] for row in predictions)


def test_bad_rows_that_are_left_out_are_shown_and_kept(tiny_run, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows("prompt_completion")) + '{"prompt": 1}\n' * 4)
    result, _, folder = in_this_process(*tiny_run, "data=local", f"data.path={file}", "data.bad_rows=skip")
    assert result["data"]["counts"] | {"rows": 24, "bad": 4} == result["data"]["counts"]
    told = [f"{file}:{line}: prompt is the number 1, expected text" for line in (21, 22, 23)]
    assert [message.partition(" (")[0] for message in result["data"]["bad_rows"]] == told
    assert "data: 24 rows · 4 bad · 16 train" in (folder / "log.txt").read_text()
    assert all(f"left out: {message}" in (folder / "log.txt").read_text() for message in told)


def test_csv_json_and_parquet_give_the_same_examples_as_jsonl(tmp_path):
    from finetune.data.splits import load_splits

    table = rows("prompt_completion")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "mine.json").write_text(json.dumps(table))
    (tmp_path / "mine.csv").write_text("prompt,completion\n" + "".join(",".join(row.values()) + "\n" for row in table))
    pyarrow.parquet.write_table(pa.Table.from_pylist(table), tmp_path / "mine.parquet")
    configs = [
        compose_config(["data=local", f"data.path={tmp_path}/mine.{kind}"])
        for kind in ("jsonl", "json", "csv", "parquet")
    ]
    fingerprints = {load_splits(config.data).fingerprint for config in configs}
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "answer": "b"}\n',
            r"mine\.jsonl:2: .*completion.*answer",
        ),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', r"mine\.jsonl:2: not valid JSON"),
        ("", r"mine\.jsonl holds no rows"),
    ],
)
def test_a_wrong_file_is_an_error_with_file_and_line(tiny_run, tmp_path, content, found):
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(UserError, match=found):
        in_this_process(*tiny_run, "data=local", f"data.path={tmp_path}/mine.jsonl")


@pytest.mark.parametrize(
    ("recipe", "metric", "found"),
    [
        ("prompt_completion", "field_f1", r"mine\.jsonl:\d+: field_f1 needs .* JSON objects.*data\.metrics"),
        ("text", "chrf", r"mine\.jsonl:\d+: plain text has no prompt.*data\.metrics=\[perplexity\]"),
    ],
)
def test_a_metric_that_cannot_score_the_references_is_refused_before_training(
    tiny_run, tmp_path, recipe, metric, found
):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(recipe)))
    mine = ["data=local", f"data.path={tmp_path}/mine.jsonl", f"data.recipe={recipe}", f"data.metrics=[{metric}]"]
    with pytest.raises(UserError, match=found):
        in_this_process(*tiny_run, *mine)


def test_a_wrong_file_ends_the_program_with_code_2_and_one_paragraph(program, tiny_run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a"}\n')
    done = program(*tiny_run, "data=local", f"data.path={tmp_path}/mine.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and "mine.jsonl:1" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_validation_during_training_changes_nothing_that_is_learnt(tiny_run, quantization):
    settings = [*tiny_run, f"quantization={quantization}", "adapter.lora_dropout=0.1"]
    with_it = in_this_process(*settings, "trainer.eval_steps=1", "name=with")
    without = in_this_process(*settings, "trainer.eval_strategy=no", "name=without")
    assert_same_weights(weights(with_it[2]), weights(without[2]))
    assert with_it[0]["training"]["validation_loss"] and without[0]["training"]["validation_loss"] is None


@pytest.mark.slow
def test_the_best_checkpoint_can_be_kept(tiny_run, tmp_path):
    files = {"path": "yes", "validation": "no", "test": "no"}  # what is learnt makes validation worse at each step
    for key, word in files.items():
        rows = [{"prompt": f"{key} {number}", "completion": f"{word} " * 20} for number in range(8)]
        (tmp_path / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    worsening = [*tiny_run, "data=local", *(f"data.{key}={tmp_path}/{key}.jsonl" for key in files)]
    worsening += ["trainer.max_steps=3", "trainer.eval_steps=1", "trainer.save_steps=1", "trainer.learning_rate=0.1"]
    worsening += ["trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0"]
    last = in_this_process(*worsening, "name=last")
    best = in_this_process(*worsening, "name=best", "trainer.load_best_model_at_end=true")
    state = json.loads((last[2] / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert losses[-1] > losses[0]
    kept, final = weights(best[2]), weights(last[2])
    assert any(not torch.equal(kept[name], final[name]) for name in kept)
    (best[2] / "result.json").unlink()
    (best[2] / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"the best checkpoint is broken: adapter_model.safetensors is missing"):
        in_this_process(*worsening, "name=best", "trainer.load_best_model_at_end=true")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_result_that_it_would_have_had(tiny_run, tmp_path):
    settings = [*tiny_run, "quantization=nf4", "trainer.max_steps=40", "trainer.save_steps=4", "trainer.eval_steps=8"]
    settings += ["adapter.lora_dropout=0.1", "trainer.learning_rate=1e-2"]
    killed = tmp_path / "outputs" / "killed"
    process = subprocess.Popen([sys.executable, run.__file__, *settings, "name=killed"], stdout=subprocess.DEVNULL)
    while not list(killed.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()

    continued, predictions, _ = in_this_process(*settings, "name=killed")
    assert 0 < continued["training"]["resumed_from_step"] < 40
    whole, expected, folder = in_this_process(*settings, "name=whole")
    assert_same_weights(weights(killed), weights(folder))
    assert predictions == expected
    for key in ("steps", "tokens", "loss_tokens", "train_loss", "validation_loss"):
        assert continued["training"][key] == whole["training"][key], key


@pytest.mark.slow
def test_a_run_that_is_not_tracked_imports_no_wandb(tiny_run, tmp_path):
    code = "import sys, run\nrun.run(run.compose_config(sys.argv[1:]))\nsys.exit('wandb' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, *tiny_run], cwd=Path(run.__file__).parent)
    assert ended.returncode == 0
    assert len(list(tmp_path.glob("outputs/*/result.json"))) == 1


def test_a_run_of_another_template_or_other_weights_is_another_run(tiny_run, tiny_model, tmp_path):
    model, template = tmp_path / "model", tmp_path / "chat.jinja"
    shutil.copytree(tiny_model, model)
    template.write_text("{{ messages[0].content }}")
    asked = [*tiny_run, f"model.path={model}", f"trainer.chat_template_path={template}"]
    found = [run_folder(compose_config(asked))]
    template.write_text("{{ messages[-1].content }}")
    found.append(run_folder(compose_config(asked)))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    found += [run_folder(compose_config(asked))] * 2
    assert len(set(found)) == 3


def test_weights_that_differ_in_one_tensor_are_another_run(tiny_run, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    folders = [run_folder(compose_config([*tiny_run, f"model.path={model}"]))]
    tensors = load_file(model / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        tensors[name] += 0.5
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        folders.append(run_folder(compose_config([*tiny_run, f"model.path={model}"])))
    assert len(set(folders)) == 3


def test_another_number_of_processes_is_another_run(tiny_run, monkeypatch):
    folders = {run_folder(compose_config(tiny_run))}
    for processes in ("1", "2", "4"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        folders.add(run_folder(compose_config(tiny_run)))
    assert len(folders) == 3


@pytest.mark.slow
def test_a_run_with_a_filled_cache_asks_nothing_of_the_network(program, tiny_run):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(1)
        proxy = f"http://127.0.0.1:{listening.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        kept = {
            key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "NO_PROXY", "no_proxy")
        }
        done = program(*tiny_run, env=kept | dict.fromkeys(names, proxy))
        with contextlib.suppress(TimeoutError):
            asked.append(listening.accept())
    assert done.returncode == 0, done.stderr
    assert not asked


@pytest.mark.slow
def test_two_processes_give_one_folder_and_one_result(program, tiny_run, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    overrides = [*tiny_run, "eval=best_prompt"]
    done = program(*overrides, launcher=[*launcher, "--num_machines", "1", "--main_process_port", "0"])
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "outputs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert done.stdout.count("2 processes") == 1
    assert result["training"]["steps"] == 3
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 4
    alone, *_ = in_this_process(*overrides, "trainer.per_device_train_batch_size=8", "name=alone")
    assert result["evaluation"]["best_prompt"] == alone["evaluation"]["best_prompt"]
    # two processes with half of the batch each see the same tokens
    assert result["training"]["tokens"] == alone["training"]["tokens"]
    assert result["training"]["train_loss"] == pytest.approx(alone["training"]["train_loss"], rel=1e-4)


@pytest.fixture
def forget_wandb():
    """W&B reads its environment once in a process."""
    yield
    sys.modules["wandb"].teardown()


@pytest.mark.slow
def test_a_run_goes_on_when_the_tracking_service_is_unreachable(tiny_run, monkeypatch, capsys, forget_wandb):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    result, _, folder = in_this_process(*tiny_run, "tracking=wandb", "tracking.mode=auto")
    assert result["status"] == "complete"
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert "W&B: offline (no connection" in capsys.readouterr().out


def test_no_secret_is_in_any_file_of_a_run(tiny_run, monkeypatch, forget_wandb):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", secret := "c0ffee" * 7)
    monkeypatch.setenv("HF_TOKEN", "hf_" + secret)
    *_, folder = in_this_process(*tiny_run, "tracking=wandb")
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_loss_that_is_not_a_number_ends_the_run(tiny_run):
    with pytest.raises(FloatingPointError, match="diverged"):
        in_this_process(*tiny_run, "adapter=full", "trainer.learning_rate=1e30", "trainer.logging_steps=1")


def test_an_update_that_leaves_no_number_ends_the_run_each_time_it_is_started(tiny_run):
    last = ["trainer.max_steps=1", "trainer.save_steps=1", "trainer.warmup_steps=0", "trainer.learning_rate=1e38"]
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"are not finite at step 1: it diverged"):
            in_this_process(*tiny_run, *last, "trainer.eval_strategy=no")


@pytest.mark.slow
def test_ctrl_c_ends_with_code_130_and_no_stack(tiny_run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, run.__file__, *tiny_run, "trainer.max_steps=1000", "name=stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    while not list((tmp_path / "outputs").glob("stopped/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_run_stopped_after_its_last_step_takes_no_further_one(tiny_run):
    settings = ["trainer.max_steps=6", "trainer.save_steps=6", "trainer.lr_scheduler_type=constant", "name=late"]
    result, predictions, folder = in_this_process(*tiny_run, *settings)
    trained = weights(folder)
    (folder / "result.json").unlink()
    again, same, _ = in_this_process(*tiny_run, *settings)
    assert again["training"]["steps"] == result["training"]["steps"] == 6
    assert again["training"]["tokens"] == result["training"]["tokens"]
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights(folder).items())
    assert [row["tuned"] for row in same] == [row["tuned"] for row in predictions]


@pytest.mark.slow
def test_answers_after_a_crash_behind_the_last_step_are_those_of_a_run_without_one(tiny_run):
    settings = [*tiny_run, "model.dtype=bfloat16", "data.metrics=[chrf,perplexity]", "trainer.learning_rate=1e-2"]
    first, answered, folder = in_this_process(*settings)
    (folder / "result.json").unlink()
    second, again, _ = in_this_process(*settings)
    assert second["training"]["resumed_from_step"] == 3
    assert again == answered
    assert second["evaluation"]["arms"]["zero_shot"]["reused"]
    assert second["evaluation"]["precision"] == first["evaluation"]["precision"] == "bfloat16"


@pytest.mark.slow
def test_a_name_that_another_run_has_is_refused(tiny_run, tmp_path):
    in_this_process(*tiny_run, "name=one")
    with pytest.raises(UserError) as error:
        in_this_process(*tiny_run, "name=one", "adapter.r=4")
    assert "another name=NAME" in str(error.value) and "adapter.r=4 (there: 16)" in str(error.value)


def test_a_folder_that_another_process_works_in_is_left_alone(tiny_run):
    from filelock import FileLock

    folder = run_folder(compose_config([*tiny_run, "name=busy"]))
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is at this run"):
        in_this_process(*tiny_run, "name=busy")


@pytest.mark.slow
def test_whichever_file_of_the_newest_checkpoint_is_damaged_the_run_ends_as_if_nothing_had_happened(tiny_run, capsys):
    settings = [*tiny_run, "trainer.max_steps=6", "trainer.save_steps=2", "trainer.save_total_limit=3", "name=damaged"]
    settings += ["adapter.lora_dropout=0.1", "trainer.learning_rate=1e-2", "trainer.gradient_accumulation_steps=2"]
    whole, predictions, folder = in_this_process(*settings)
    expected, checkpoints = weights(folder), folder / "checkpoints"
    names = [file.name for file in (checkpoints / "checkpoint-6").iterdir()]
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} <= {*names}
    assert "training_args.bin" not in names
    for name in names:
        (folder / "result.json").unlink()
        os.truncate(checkpoints / "checkpoint-6" / name, 3)
        capsys.readouterr()
        continued, answered, _ = in_this_process(*settings)
        assert f"checkpoint-6 is broken and set aside as broken-checkpoint-6: {name}" in capsys.readouterr().out
        assert continued["training"]["resumed_from_step"] == 4
        assert_same_weights(weights(folder), expected)
        assert answered == predictions and continued["training"]["train_loss"] == whole["training"]["train_loss"]
        shutil.rmtree(checkpoints / "broken-checkpoint-6")


@pytest.mark.slow
def test_a_run_killed_before_its_result_is_written_is_completed_by_the_same_command(tiny_run, monkeypatch):
    whole, predictions, folder = in_this_process(*tiny_run)
    (folder / "result.json").unlink()
    (folder / "report.html").unlink()
    replace = Path.replace

    def until_killed(file, target):
        if target.name == "result.json":
            raise KeyboardInterrupt
        return replace(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", until_killed)
        with pytest.raises(KeyboardInterrupt):
            in_this_process(*tiny_run)
    assert (folder / "report.html").exists() and not (folder / "result.json").exists()
    again, answered, _ = in_this_process(*tiny_run)
    assert answered == predictions and again["evaluation"]["verdict"] == whole["evaluation"]["verdict"]


def start(*overrides):
    """`python run.py OVERRIDES`, begun as a job in the foreground is."""
    return subprocess.Popen(
        [sys.executable, run.__file__, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_ends_training_with_a_checkpoint_from_which_it_continues(tiny_run, tmp_path, stop, code):
    settings = [*tiny_run, "trainer.max_steps=200", "trainer.save_steps=10", "trainer.eval_strategy=no"]
    settings += ["adapter.lora_dropout=0.1"]
    process = start(*settings, "name=asked")
    folder = tmp_path / "outputs" / "asked"
    while not list(folder.glob("checkpoints/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.Signals[stop])
    _, error = process.communicate()
    assert process.returncode == code, error
    assert f"{stop}: this step ends first, with a checkpoint." in error and "Traceback" not in error
    assert json.loads((folder / "result.json").read_text())["status"] == "preempted"
    if stop != "SIGTERM":  # the same from here on
        return
    steps = [int(checkpoint.name.rpartition("-")[2]) for checkpoint in folder.glob("checkpoints/checkpoint-*")]
    continued, predictions, _ = in_this_process(*settings, "name=asked")
    assert continued["training"]["resumed_from_step"] == max(steps) < 200
    whole, expected, other = in_this_process(*settings, "name=undisturbed")
    assert_same_weights(weights(folder), weights(other))
    assert predictions == expected and continued["training"]["train_loss"] == whole["training"]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["config.yaml", "adapter"])  # while it imports, and while it answers
def test_a_signal_while_nothing_is_trained_ends_the_run_at_once(tiny_run, tmp_path, begun):
    process = start(*tiny_run, "eval.max_prompts=40", "eval.max_new_tokens=200", "name=asked")
    folder = tmp_path / "outputs" / "asked"
    while not (folder / begun).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 75 and "Traceback" not in error, error
    assert json.loads((folder / "result.json").read_text())["status"] == "preempted"


class CountingSha256:
    """hashlib's SHA-256, which counts the bytes that it is given in pieces."""

    real, count = hashlib.sha256, 0

    def __init__(self, data=b"", **options):
        self.digest_so_far = self.real(data, **options)

    def update(self, data):
        CountingSha256.count += memoryview(data).nbytes
        self.digest_so_far.update(data)

    def __getattr__(self, name):
        return getattr(self.digest_so_far, name)


@pytest.mark.slow
def test_the_weights_of_the_base_are_hashed_once_in_a_run(tiny_run, tiny_model, monkeypatch):
    monkeypatch.setattr(hashlib, "sha256", CountingSha256)
    in_this_process(*tiny_run)
    tensors = load_file(tiny_model / "model.safetensors")
    once = sum(tensor.nbytes for tensor in tensors.values()) + tensors["model.embed_tokens.weight"].nbytes  # the head
    assert once <= CountingSha256.count < 1.5 * once
