import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from finetune.cli.main import check_sweep
from finetune.cli.overrides import check_overrides
from finetune.cli.validate import _adapter, read_config, validate_config
from finetune.config.schema import Adapter, Config, Data, Eval, Model, Quantization, Source
from finetune.config.sft_fields import sft_fields
from finetune.errors import UserError, raise_problems

NF4 = Quantization(load_in_4bit=True)
EMBEDDED = Data(name="d", source=Source.embedded, path="usaddress", recipe="usaddress", metrics=["field_f1"])
MODEL = Model(name="m", source=Source.embedded, path="smollm2_135m")
TRAINER = {"eval_strategy": "steps", "eval_steps": 25, "save_strategy": "steps", "save_steps": 25}


def changed(**changes: Any) -> Config:
    """A sound configuration with these settings changed, `adapter__r=0` for adapter.r."""
    config = copy.deepcopy(Config(data=EMBEDDED, model=MODEL, quantization=NF4, trainer=dict(TRAINER)))
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        if section == "trainer":
            config.trainer[name] = value
        else:
            setattr(getattr(config, section) if section else config, name, value)
    return config


def complaint(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        validate_config(config)
    return str(caught.value)


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        check_overrides(list(arguments))
    return str(caught.value)


def switches(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Every setting that is on or off."""
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from switches(kind, f"{prefix}{name}.")
        elif kind is bool:
            yield prefix + name


@pytest.mark.parametrize("setting", [*switches(), "trainer.packing"])
@pytest.mark.parametrize("value", ["1", "2", "0", "1.0", "yes", "null"])
def test_a_switch_is_true_or_false_and_nothing_else(setting: str, value: str) -> None:
    told = refusal(f"{setting}={value}")
    assert told.startswith(f"{setting}={value}: expected true or false")
    assert refusal("-m", f"{setting}=true,{value}").startswith(f"{setting}={value}: expected true or false")
    check_overrides([f"{setting}=true"])
    check_overrides([f"{setting}=False"])


def test_a_sound_configuration_passes() -> None:
    validate_config(changed())


RULES = [
    (
        {"trainer__packing": True, "trainer__max_length": 512, "trainer__per_device_train_batch_size": 8},
        "trainer.packing=true with trainer.per_device_train_batch_size=8: without flash attention",
    ),
    (
        {"trainer__max_steps": 10, "trainer__warmup_steps": 10},
        "trainer.warmup_steps=10 with trainer.max_steps=10: the learning rate would never be reached",
    ),
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
    ({"trainer__shuffle_dataset": True}, "trainer.shuffle_dataset=true: every epoch is shuffled by seed"),
    ({"trainer__max_seq_length": 512}, "trainer.max_seq_length=512: TRL's SFTConfig has no field max_seq_length"),
    ({"trainer__warmup_ratio": 0.1}, "Did you mean trainer.warmup_steps"),
    ({"trainer__learning_rate": "fast"}, "trainer.learning_rate=fast: expected a number"),
    ({"trainer__max_steps": 2.5}, "trainer.max_steps=2.5: expected an integer"),
    ({"trainer__packing": 1}, "trainer.packing=1: expected true or false"),
    ({"trainer__lr_scheduler_type": "cosin"}, "Did you mean cosine?"),
    ({"trainer__eval_strategy": False}, 'write "no" in quotes'),
    ({"trainer__learning_rate": 0.0}, "trainer.learning_rate=0.0: it must be above 0"),
    ({"trainer__max_steps": 0}, "trainer.max_steps=0: it must be at least 1, or -1"),
    ({"trainer__output_dir": "x"}, "trainer.output_dir=x: a run has its own folder. Write output_dir=FOLDER"),
    ({"trainer__run_name": "x"}, "Write name=NAME"),
    ({"trainer__seed": 0}, "trainer.seed=0: one seed is for everything. Write seed=N"),
    ({"trainer__model_init_kwargs": {}}, "Write model.dtype"),
    ({"trainer__trust_remote_code": True}, "Write model.trust_remote_code=true"),
    ({"trainer__push_to_hub": True}, "a run publishes nothing"),
    ({"trainer__hub_token": "abc"}, "trainer.hub_token=***: a secret does not belong in a configuration"),
    ({"trainer__resume_from_checkpoint": "x"}, "the same command continues its run"),
    ({"trainer__report_to": "wandb"}, "trainer.report_to=wandb: numbers are sent by tracking=wandb"),
    ({"trainer__pad_token": "x"}, "trainer.pad_token=x: it is deprecated in TRL"),
    ({"trainer__use_liger_kernel": True}, "trainer.use_liger_kernel=true: it is deprecated in TRL"),
    ({"trainer__truncation_mode": "keep_end"}, "Write trainer.truncation_mode=keep_start"),
    ({"trainer__loss_type": "chunked_nll"}, "Write trainer.loss_type=nll"),
    ({"trainer__packing": True, "trainer__max_length": None}, "packs need a length"),
    ({"trainer__bf16": True, "trainer__fp16": True}, "trainer.bf16=true and trainer.fp16=true: only one is possible"),
    ({"trainer__eval_steps": None}, "trainer.eval_strategy=steps: it needs an interval"),
    ({"trainer__metric_for_best_model": "foo"}, "trainer.metric_for_best_model=foo: validation measures the loss"),
    (
        {"trainer__save_strategy": "best", "trainer__eval_strategy": "no"},
        "trainer.save_strategy=best: the best follows from validation",
    ),
    ({"trainer__load_best_model_at_end": True, "trainer__save_steps": 30}, "Write trainer.save_steps=25"),
    ({"trainer__load_best_model_at_end": True, "trainer__eval_strategy": "no"}, "Add trainer.eval_strategy=steps"),
    ({"trainer__load_best_model_at_end": True, "trainer__save_strategy": "epoch"}, "they must be the same"),
    ({"trainer__lr_scheduler_type": "greedy", "trainer__eval_strategy": "no"}, "it follows the validation loss"),
    ({"trainer__dataloader_prefetch_factor": 2}, "Add trainer.dataloader_num_workers=2"),
    ({"trainer__gradient_checkpointing": True, "trainer__activation_checkpointing": False}, "two names of one setting"),
]


@pytest.mark.parametrize(("changes", "promised"), RULES, ids=[text for _, text in RULES])
def test_each_rule_says_what_is_wrong_and_what_to_write(changes: dict[str, Any], promised: str) -> None:
    assert promised in complaint(changed(**changes))


@pytest.mark.parametrize(
    "name", ["r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "layers_to_transform"]
)
def test_adapter_settings_are_refused_where_there_is_no_adapter(name: str) -> None:
    adapter = Adapter(enabled=False, **{name: ["other"]})
    config = dataclasses.replace(changed(), adapter=adapter, quantization=Quantization())
    with pytest.raises(UserError, match=rf"adapter\.{name}=\[other\]: it has no effect here"):
        raise_problems(list(_adapter(config.adapter, config.quantization)))


@pytest.mark.parametrize("quantization", [Quantization(), Quantization(load_in_8bit=True)])
def test_four_bit_settings_are_refused_where_nothing_has_four_bits(quantization: Quantization) -> None:
    quantization.bnb_4bit_use_double_quant = False
    message = complaint(dataclasses.replace(changed(), quantization=quantization))
    assert "quantization.bnb_4bit_use_double_quant=false: it has no effect here" in message


def test_all_problems_are_told_at_once() -> None:
    message = complaint(changed(seed=-1, adapter__r=0, trainer__lr=1, eval__top_k=5))
    assert message.startswith("4 problems")
    for key in ("seed=-1", "adapter.r=0", "trainer.lr=1", "eval.top_k=5"):
        assert f"\n  {key}: " in message


def test_a_misspelt_file_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    config = changed(data__source=Source.local, data__path=str(tmp_path / "mien.jsonl"))
    assert f"Did you mean {tmp_path / 'mine.jsonl'}?" in complaint(config)


def test_sampling_settings_are_fine_when_answers_are_sampled() -> None:
    validate_config(dataclasses.replace(changed(), eval=Eval(temperature=0.7, top_p=0.9, top_k=40)))


def test_a_setting_that_no_file_gives_is_told() -> None:
    config = OmegaConf.structured(Config(data=dataclasses.replace(EMBEDDED, recipe="???"), model=MODEL))
    with pytest.raises(UserError, match=r"data\.recipe is not set"):
        read_config(config)


COMMAND_LINES = [
    ("adaptor.r=8", "adaptor.r=8: there is no such setting. Did you mean adapter.r?"),
    ("adapter.rr=8", "adapter.rr=8: there is no such setting. Did you mean adapter.r?"),
    ("adapter.foo=8", "There are enabled, r, lora_alpha"),
    ("r=8", "Did you mean adapter.r?"),
    ("lr=3e-4", "lr=3e-4: there is no such setting. Did you mean trainer.learning_rate?"),
    ("datas=usaddress", "datas=usaddress: there is no such setting. Did you mean data?"),
    ("adapter.r=eight", "adapter.r=eight: expected an integer, such as 16"),
    ("adapter.r=", "adapter.r=: expected an integer"),
    ("seed=null", "seed=null: expected an integer"),
    ("adapter.bias=lora", "Did you mean adapter.bias=lora_only?"),
    ("data=usadress", "data=usadress: there is no such option. Did you mean data=usaddress? There are"),
    ("experiment=adress_full_precision", "Did you mean experiment=address_full_precision?"),
    ("sweep=lora_rnk", "Did you mean sweep=lora_rank?"),
    ("data=null", "data=null: a part cannot be left out"),
    ("~data", "~data: a part cannot be left out"),
    ("~adapter.r", "~adapter.r: a setting cannot be left out"),
    ("+adapter.r=8", "+adapter.r=8: it exists already. Write it without the plus"),
    ("trainer.max_seq_length=512", "Did you mean trainer.max_length?"),
    ("trainer.learning_rate=fast", "trainer.learning_rate=fast: expected a number"),
    ("trainer.learning_rate=inf", "trainer.learning_rate=inf: it must be above 0, and finite"),
    ("trainer.adam_beta1=5", "trainer.adam_beta1=5: it must be at least 0 and below 1"),
    ("trainer.dataloader_num_workers=-1", "trainer.dataloader_num_workers=-1: it must be at least 0"),
    ("trainer.deepspeed=x.json", "trainer.deepspeed=x.json: there is no such file"),
    ("hydra.run.dir=foo", "a run has a folder of its own. Write output_dir=FOLDER"),
    ("trainer.learning_rate.x=1", "trainer.learning_rate has no parts"),
    ("adapter.r=4,8", "adapter.r=4,8: several values make a sweep. Add -m."),
    ("adapter.target_modules=q,v", "or write adapter.target_modules=[q,v] for one list"),
    ("trainer.hub_token=abc", "trainer.hub_token=***"),
    ("tracking.api_key=abc", "tracking.api_key=***: a secret does not belong"),
    ("foo", "foo: a setting is written key=value"),
    ("adapter.r=[8", "adapter.r=[8: it cannot be read"),
]


@pytest.mark.parametrize(("argument", "promised"), COMMAND_LINES, ids=[argument for argument, _ in COMMAND_LINES])
def test_a_wrong_setting_is_told_with_the_right_one(argument: str, promised: str) -> None:
    message = refusal(argument)
    assert promised in message
    assert "abc" not in message


@pytest.mark.parametrize(
    "argument",
    [
        "adapter.r=8",
        "adapter.target_modules=[q_proj,v_proj]",
        "name=null",
        "experiment=null",
        "seed=${oc.env:SEED}",
        "trainer.max_length=null",
        "trainer.warmup_steps=0.1",
        "trainer.gradient_checkpointing_kwargs.use_reentrant=false",
        "~trainer.eval_steps",
        "data.columns.prompt=question",
        "hydra.verbose=true",
        "--cfg=job",
    ],
)
def test_what_is_right_passes(argument: str) -> None:
    check_overrides([argument])


def test_each_value_of_a_sweep_is_checked() -> None:
    check_overrides(["-m", "adapter.r=4,8", "adapter=lora,dora"])
    message = refusal("-m", "adapter.r=4,eight", "trainer.learning_rate=1e-4,fast", "adapter=lora,dorra")
    for value in ("adapter.r=eight", "trainer.learning_rate=fast", "adapter=dorra"):
        assert f"\n  {value}: " in message


@pytest.mark.parametrize(
    "arguments", [["-m", "adapter.r=4,-1"], ["sweep=lora_rank", "seed=1,-1"], ["-m", "adapter=lora,full"]]
)
def test_no_run_of_a_sweep_starts_before_the_last_is_known_to_be_valid(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        check_sweep(arguments)


def test_every_number_out_of_its_limits_is_told_at_once() -> None:
    message = refusal("adapter.r=8.5", "adapter.lora_dropout=1.5", "seed=-3", "trainer.learning_rate=-1")
    assert message.startswith("4 problems")
    message = refusal("-m", "adapter.lora_dropout=2,3", "adapter.r=0,8")
    assert [line.partition(":")[0].strip() for line in message.splitlines()[1:]] == [
        "adapter.lora_dropout=2",
        "adapter.lora_dropout=3",
        "adapter.r=0",
    ]


def test_an_interval_needs_a_search() -> None:
    told = "trainer.learning_rate=interval(0,1): an interval is for a search. Add hydra/sweeper=optuna"
    assert refusal("-m", "trainer.learning_rate=interval(0,1)").startswith(told)
    check_overrides(["-m", "hydra/sweeper=optuna", "trainer.learning_rate=interval(0,1)"])


def test_a_valid_sweep_passes() -> None:
    check_sweep(["-m", "adapter.r=4,8", "quantization=nf4,none"])
    check_sweep(["sweep=lora_rank", "seed=1,2"])
    check_sweep(["adapter.r=4"])


def test_a_sweep_preset_needs_no_flag() -> None:
    check_overrides(["sweep=lora_rank", "seed=1,2"])


def test_options_of_a_folder_of_ones_own_are_known(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine")
    check_overrides(["--config-dir", str(tmp_path), "data=mine"])
    check_overrides([f"hydra.searchpath=[file://{tmp_path}]", "data=mine"])
    assert "There are hub, local, usaddress" in refusal("data=mine")


def test_the_fields_read_from_source_are_those_of_the_installed_trl() -> None:
    from trl import SFTConfig

    assert set(sft_fields()) == {field.name for field in dataclasses.fields(SFTConfig) if field.init}


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("learning_rate", [1e-4, 1], ["fast", None, True]),
        ("max_steps", [3, -1], [3.5, "3", None]),
        ("packing", [True, False], [1, "yes", None]),
        ("bf16", [True, None], ["yes"]),
        ("max_length", [512, None], ["long", 1.5]),
        ("optim", ["adamw_torch", "adamw_8bit"], ["adam", 3]),
        ("eval_strategy", ["no", "steps", "epoch"], ["never", False]),
        ("save_strategy", ["best"], ["never"]),
        ("packing_strategy", ["bfd_split"], ["best"]),
        ("lr_scheduler_kwargs", [{"num_cycles": 1}, None], [3]),
        ("pad_to_multiple_of", [8, "auto", None], [1.5]),
        ("report_to", ["none", ["tensorboard"], None], [3]),
        ("eval_steps", [25, 0.1, None], ["often"]),
        ("parallelism_config", [None], ["x", {}]),
    ],
)
def test_a_field_takes_what_sft_config_takes(name: str, accepted: list[Any], refused: list[Any]) -> None:
    field = sft_fields()[name]
    assert all(field.accepts(value) for value in accepted)
    assert not any(field.accepts(value) for value in refused)
