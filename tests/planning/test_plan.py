"""What a plan says is what a run then does; a run that will not fit is refused with what makes it fit."""

import json

import pytest
from support import tiny_models
from torch.autograd.graph import saved_tensors_hooks

import run
from finetune.cli.compose import compose_config
from finetune.data.splits import load_splits
from finetune.errors import UserError
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
from finetune.planning import meta_model, plan
from finetune.planning.memory import estimate_memory, training_bytes, weight_bytes
from finetune.planning.meta_model import build_meta_model
from finetune.planning.plan import make_plan
from finetune.planning.remedies import find_remedies
from finetune.runs.folder import run_folder
from finetune.training.prepare import prepare_run
from finetune.training.trainer import Trainer, recompute_activations

MIB = 2**20
PACKED = ["trainer.packing=true", "trainer.max_length=512", "trainer.per_device_train_batch_size=1"]


def prepared_run(*overrides):
    config = compose_config(list(overrides))
    machine = choose_device(config.model, config.quantization, config.adapter)
    return config, prepare_run(config, load_splits(config.data), machine, run_folder(config)), machine


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["trainer.max_steps=3"], marks=pytest.mark.slow),
        pytest.param(
            ["trainer.max_steps=-1", "trainer.num_train_epochs=2", "trainer.gradient_accumulation_steps=3"],
            marks=pytest.mark.slow,
        ),
        pytest.param([*PACKED, "trainer.max_steps=4"], marks=pytest.mark.slow),
        pytest.param(
            ["trainer.max_length=200", "data.max_cut_share=1", "model.attn_implementation=eager"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_steps_epochs_and_tokens_are_those_of_the_run(tiny_run, settings):
    settings = [*tiny_run, *settings, "trainer.eval_strategy=no", "trainer.save_strategy=no"]
    _, work, _ = estimate_memory(*prepared_run(*settings))
    config = compose_config(settings)
    run.run(config)
    training = json.loads((run_folder(config) / "result.json").read_text())["training"]
    assert work.steps == training["steps"]
    assert work.epochs == pytest.approx(training["epochs"], abs=0.01)
    assert work.tokens == training["tokens"]


def saved_bytes(trainer, inputs):
    """Bytes of the distinct tensors that a forward pass keeps for the backward pass, weights aside."""
    weights = {parameter.untyped_storage()._cdata for parameter in trainer.model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    trainer.model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.compute_loss(trainer.model, dict(inputs))
    return sum(storage.nbytes() for storage in kept.values()), loss


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("recomputed", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_hollow_model_keeps_as_many_bytes_as_the_real_one(tiny_run, quantization, recomputed):
    settings = [f"quantization={quantization}", f"trainer.activation_checkpointing={recomputed}"]
    config, prepared, machine = prepared_run(*tiny_run, *settings)
    trainer, work, _ = estimate_memory(config, prepared, machine)
    predicted, _ = saved_bytes(trainer, work.largest[0])
    base = load_base(config.model, config.quantization, machine)
    real = Trainer(add_adapter(base, config.adapter, config.seed), prepared, [])
    recompute_activations(real)
    measured, _ = saved_bytes(real, work.largest[0])
    assert predicted == measured
    alive = sum(training_bytes(trainer, work.largest[0]).values())
    assert alive >= predicted


@pytest.mark.slow
def test_weights_are_counted_as_they_are_stored(tiny_run):
    for quantization in ("nf4", "int8", "none"):
        config, prepared, machine = prepared_run(*tiny_run, f"quantization={quantization}")
        base = load_base(config.model, config.quantization, machine)
        hollowed = build_meta_model(prepared.outline, config, machine)
        assert weight_bytes(hollowed, config.quantization)["weights"] == pytest.approx(
            base.get_memory_footprint(return_buffers=False), rel=0.02
        )


def without_weights(folder, **shape):
    """A folder with a llama's configuration and a tokenizer, and no weights."""
    from transformers import AutoConfig, AutoTokenizer

    from finetune.data.embedded import embedded_model

    AutoConfig.for_model("llama", **shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model("smollm2_135m")).save_pretrained(folder)
    return ["model=local", f"model.path={folder}"]


@pytest.mark.slow
def test_a_deep_model_is_gone_through_at_two_depths_only(tiny_run, tmp_path, monkeypatch):
    shape = tiny_models.SHAPE | {"vocab_size": 49152, "num_hidden_layers": 9, "max_position_embeddings": 512}
    settings = [*tiny_run, *without_weights(tmp_path, **shape), "trainer.max_length=512"]
    trainer, work, _ = estimate_memory(*prepared_run(*settings))
    extrapolated = training_bytes(trainer, work.largest[0])
    monkeypatch.setattr(meta_model, "DEPTHS", ())
    assert extrapolated == training_bytes(trainer, work.largest[0])


@pytest.mark.slow
def test_two_depths_whose_worst_moments_differ_are_not_compared(monkeypatch):
    settings = ["quantization=none", "adapter=full", "eval.max_prompts=4", "tracking=none"]
    trainer, work, _ = estimate_memory(*prepared_run(*settings))
    extrapolated = training_bytes(trainer, work.largest[0])
    monkeypatch.setattr(meta_model, "DEPTHS", ())
    whole = training_bytes(trainer, work.largest[0])
    assert sum(extrapolated.values()) == pytest.approx(sum(whole.values()), rel=0.01)


@pytest.mark.slow
def test_an_8b_model_is_planned_without_its_weights(tmp_path):
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    place = [*without_weights(tmp_path, **shape), "quantization=nf4", "tracking=none"]
    config, prepared, machine = prepared_run(*place, "plan.memory_gib=200", "plan.tflops=100")
    made = make_plan(config, prepared, machine, 0.0)
    embeddings = 2 * 128256 * 4096
    packed = prepared.outline.num_parameters() - embeddings
    expected = 0.516 * packed + machine.weight_dtype.itemsize * embeddings
    assert made.need.phases["training step"]["weights"] == pytest.approx(expected, rel=0.01)
    assert made.need.verdict == "fits" and made.seconds["train"] > 0


@pytest.fixture
def long_prompts(tiny_run, tmp_path):
    """Overrides of a run whose activations are most of what it needs."""
    words = [f"w{i * 7919 % 1000}" for i in range(6000)]
    rows = [{"prompt": " ".join(words[i * 50 : i * 50 + 120]), "completion": f"{i}"} for i in range(100)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [
        "data=local",
        f"data.path={tmp_path / 'long.jsonl'}",
        "trainer.per_device_eval_batch_size=1",
        "data.max_train_rows=null",
    ]
    few = ["eval.max_prompts=1", "eval.shots=0"]
    return [*tiny_run, "force=false", *data, *few, "trainer.per_device_train_batch_size=64", "name=long"]


@pytest.mark.slow
def test_a_run_that_will_not_fit_is_refused_and_the_first_remedy_makes_it_fit(long_prompts):
    for _ in range(2):  # the process itself grows on the first
        estimate = estimate_memory(*prepared_run(*long_prompts))[2]
    small = f"plan.memory_gib={(estimate.peak - 60 * MIB) / 2**30}"
    config, prepared, machine = prepared_run(*long_prompts, small)
    need = estimate_memory(config, prepared, machine)[2]
    remedies = list(find_remedies(config, prepared, machine, need))
    costs = [one.settings.partition("=")[0] for one in remedies]
    assert costs[:2] == ["trainer.activation_checkpointing", "trainer.per_device_train_batch_size"]
    with pytest.raises(UserError, match=f"will not fit.*cheapest first: {remedies[0].settings} "):
        run.run(config)
    assert not (run_folder(config) / "adapter").exists()
    run.run(compose_config([*long_prompts, small, *remedies[0].settings.split()]))
    assert (run_folder(config) / "result.json").exists()


@pytest.mark.slow
def test_the_refusal_ends_the_program_with_code_2_before_the_model_loads_unless_forced(program, tiny_run):
    refused = program(*tiny_run, "plan.memory_gib=0.1", "force=false")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: This run will not fit") and "Traceback" not in refused.stderr
    assert "attention:" not in refused.stdout
    run.run(compose_config([*tiny_run, "plan.memory_gib=0.1"]))


@pytest.mark.slow
def test_the_trials_of_a_sweep_are_added_up(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "shown", [])
    for rank in (4, 8):
        run.run(compose_config(["stage=plan", "plan.tflops=1", f"adapter.r={rank}", *tiny_run]))
    told = capsys.readouterr().out
    assert told.count("fits: ") == 2 and told.count("2 trials so far: ") == 1
    plans = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/plan.json")]
    assert [one["steps"] for one in plans] == [3, 3]


@pytest.mark.slow
def test_the_pace_is_measured_where_none_is_stated(tiny_run):
    config, prepared, machine = prepared_run(*tiny_run)
    made = make_plan(config, prepared, machine, 0.0)
    assert made.seconds.keys() == {"prepare", "load", "train", "evaluate"}
    assert all(seconds > 0 for seconds in made.seconds.values())
    assert "measured" in made.measured
