"""A composed configuration that is wrong is reported with every problem, and what should be written instead."""

import copy
import dataclasses

import pytest
from omegaconf import OmegaConf

from finetune.cli.compose import compose_config
from finetune.cli.validate import read_config, validate_config
from finetune.config.schema import Config, Data, Eval, Model, Quantization, Source
from finetune.errors import UserError

NF4 = Quantization(load_in_4bit=True)
EMBEDDED = Data(name="d", source=Source.embedded, path="usaddress", recipe="usaddress", metrics=["field_f1"])
MODEL = Model(name="m", source=Source.embedded, path="smollm2_135m")
TRAINER = {"eval_strategy": "steps", "eval_steps": 25, "save_strategy": "steps", "save_steps": 25}


def changed(**changes):
    """A sound configuration with these settings changed, `adapter__r=0` for adapter.r."""
    config = copy.deepcopy(Config(data=EMBEDDED, model=MODEL, quantization=NF4, trainer=dict(TRAINER)))
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        if section == "trainer":
            config.trainer[name] = value
        else:
            setattr(getattr(config, section) if section else config, name, value)
    return config


def complaint(config):
    with pytest.raises(UserError) as caught:
        validate_config(config)
    return str(caught.value)


def test_a_sound_configuration_passes():
    validate_config(changed())


RULES = [
    ({"seed": -1}, "seed=-1: it must be between 0 and 4294967295"),
    ({"seed": 2**32}, "seed=4294967296"),
    ({"name": "a/b"}, "name=a/b: it names a folder"),
    ({"name": ".."}, "name=.."),
    ({"name": ""}, "name="),
    ({"data__validation_fraction": 0.0}, "data.validation_fraction=0.0: it must be above 0 and below 1"),
    ({"data__test_fraction": 1.0}, "data.test_fraction=1.0"),
    ({"data__validation_fraction": 0.5, "data__test_fraction": 0.5}, "together they must be below 1"),
    ({"data__max_bad_rows": -1}, "data.max_bad_rows=-1: it must be at least 0"),
    ({"data__max_bad_rows": 5}, "data.max_bad_rows=5: it has no effect here: data.bad_rows=error allows no bad row"),
    ({"data__max_train_rows": 0}, "data.max_train_rows=0: it must be at least 1"),
    (
        {"data__recipe": "usadress"},
        "data.recipe=usadress: there is no such file in data_recipes/. Did you mean usaddress?",
    ),
    ({"data__metrics": ["field_f2"]}, "field_f2 is no metric. Did you mean field_f1?"),
    ({"data__metrics": ["chrf", "chrf"]}, "chrf is named more than once"),
    ({"data__subset": "en"}, "data.subset=en: it has no effect here: it is for data=hub"),
    ({"data__revision": "main"}, "data.revision=main: it has no effect here"),
    ({"data__train_split": "all"}, "data.train_split=all: it has no effect here"),
    ({"data__test": "absent.jsonl"}, "data.test=absent.jsonl: there is no such file"),
    ({"data__test": __file__, "data__test_fraction": 0.2}, "data.test_fraction=0.2: it has no effect here"),
    (
        {"data__source": Source.local, "data__path": ""},
        "data.path is not set, and data=d needs it. Write data.path=FILE",
    ),
    ({"data__source": Source.local, "data__path": "absent.jsonl"}, "data.path=absent.jsonl: there is no such file"),
    ({"data__source": Source.embedded, "data__path": "my.csv"}, "data=d brings its own. For yours add data=local"),
    ({"data__source": Source.hub, "data__path": "a/b/c"}, "data.path=a/b/c: this is no name on the hub"),
    ({"model__source": Source.local, "model__path": ""}, "Write model.path=FOLDER"),
    ({"model__source": Source.local, "model__path": "absent"}, "model.path=absent: no config.json is there"),
    ({"model__source": Source.hub, "model__path": ""}, "Write model.path=OWNER/NAME"),
    ({"model__revision": "main"}, "model.revision=main: it has no effect here: it is for models of the hub"),
    ({"model__trust_remote_code": True}, "model.trust_remote_code=true: it has no effect here"),
    ({"quantization__load_in_8bit": True}, "only one is possible. Write quantization=nf4, fp4 or int8"),
    ({"quantization__llm_int8_threshold": 4.0}, "quantization.llm_int8_threshold=4.0: it has no effect here"),
    ({"adapter__enabled": False}, "Write quantization=none to train all weights, or adapter=lora to train an adapter"),
    ({"adapter__r": 0}, "adapter.r=0: it must be at least 1"),
    ({"adapter__lora_alpha": 0}, "adapter.lora_alpha=0: it must be at least 1"),
    ({"adapter__lora_dropout": 1.0}, "adapter.lora_dropout=1.0: it must be at least 0 and below 1"),
    ({"adapter__lora_dropout": float("nan")}, "adapter.lora_dropout=nan"),
    (
        {"adapter__target_modules": "q_proj"},
        "adapter.target_modules=q_proj: it must be all-linear or a list of modules",
    ),
    ({"adapter__target_modules": []}, "adapter.target_modules=[]"),
    ({"adapter__target_modules": ["q_proj", "lm_head"]}, "lm_head cannot carry an adapter"),
    ({"adapter__layers_to_transform": [0]}, "adapter.layers_to_transform=[0]: it needs the modules by name"),
    ({"adapter__layers_to_transform": [-1], "adapter__target_modules": ["q_proj"]}, "counted from 0"),
    ({"eval__max_prompts": 0}, "eval.max_prompts=0: it must be at least 1"),
    ({"eval__batch_size": 0}, "eval.batch_size=0: it must be at least 1"),
    ({"eval__max_new_tokens": 0}, "eval.max_new_tokens=0: it must be at least 1"),
    ({"eval__temperature": -0.1}, "eval.temperature=-0.1: it must be at least 0"),
    ({"eval__top_p": 0.0, "eval__temperature": 1.0}, "eval.top_p=0.0: it must be above 0 and at most 1"),
    ({"eval__top_k": -1, "eval__temperature": 1.0}, "eval.top_k=-1: it must be at least 0"),
    (
        {"eval__top_p": 0.9},
        "eval.top_p=0.9: it has no effect here: eval.temperature=0 always takes the likeliest token",
    ),
    ({"eval__top_k": 5}, "eval.top_k=5: it has no effect here"),
]


@pytest.mark.parametrize(("changes", "promised"), RULES, ids=[text for _, text in RULES])
def test_each_rule_says_what_is_wrong_and_what_to_write(changes, promised):
    assert promised in complaint(changed(**changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("r", 4), ("lora_alpha", 4), ("lora_dropout", 0.5), ("use_dora", True), ("target_modules", ["other"])],
)
def test_adapter_settings_are_refused_where_there_is_no_adapter(name, value):
    message = complaint(changed(adapter__enabled=False, quantization=Quantization(), **{f"adapter__{name}": value}))
    assert f"adapter.{name}=" in message and "it has no effect here: adapter=full trains all weights" in message


@pytest.mark.parametrize("quantization", [Quantization(), Quantization(load_in_8bit=True)])
def test_four_bit_settings_are_refused_where_nothing_has_four_bits(quantization):
    quantization.bnb_4bit_use_double_quant = False
    message = complaint(dataclasses.replace(changed(), quantization=quantization))
    assert "quantization.bnb_4bit_use_double_quant=false: it has no effect here" in message


def test_all_problems_are_told_at_once():
    message = complaint(changed(seed=-1, adapter__r=0, trainer__lr=1, eval__top_k=5))
    assert message.startswith("4 problems")
    for key in ("seed=-1", "adapter.r=0", "trainer.lr=1", "eval.top_k=5"):
        assert f"\n  {key}: " in message


def test_a_misspelt_file_is_suggested(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}")
    config = changed(data__source=Source.local, data__path=str(tmp_path / "mien.jsonl"))
    assert f"Did you mean {tmp_path / 'mine.jsonl'}?" in complaint(config)


def test_sampling_settings_are_fine_when_answers_are_sampled():
    validate_config(dataclasses.replace(changed(), eval=Eval(temperature=0.7, top_p=0.9, top_k=40)))


def test_a_setting_that_no_file_gives_is_told():
    config = OmegaConf.structured(Config(data=dataclasses.replace(EMBEDDED, recipe="???"), model=MODEL))
    with pytest.raises(UserError, match=r"data\.recipe is not set"):
        read_config(config)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_shards_the_model_is_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=rf"accelerate launch set ACCELERATE_USE_{name}: a model in shards can neither"):
        compose_config([])
