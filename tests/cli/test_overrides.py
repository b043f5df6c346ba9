"""What is wrong on a command line is reported before Hydra composes it, with what should be written instead."""

from dataclasses import is_dataclass
from typing import get_type_hints

import pytest

from finetune.cli.overrides import check_overrides, suggest_setting
from finetune.config.schema import Config
from finetune.errors import UserError


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        check_overrides(list(arguments))
    return str(caught.value)


def switches(section=Config, prefix=""):
    """Every setting that is on or off."""
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from switches(kind, f"{prefix}{name}.")
        elif kind is bool:
            yield prefix + name


@pytest.mark.parametrize("setting", [*switches(), "trainer.packing"])
@pytest.mark.parametrize("value", ["1", "2", "0", "1.0", "yes", "null"])
def test_a_switch_is_true_or_false_and_nothing_else(setting, value):
    told = refusal(f"{setting}={value}")
    assert told.startswith(f"{setting}={value}: expected true or false")
    assert refusal("-m", f"{setting}=true,{value}").startswith(f"{setting}={value}: expected true or false")
    check_overrides([f"{setting}=true"])
    check_overrides([f"{setting}=False"])


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
    ("trainer.deepspeed=x.json", "trainer.deepspeed=x.json: a model in shards can neither be saved nor answer here"),
    ("hydra.run.dir=foo", "a run has a folder of its own. Write output_dir=FOLDER"),
    ("trainer.learning_rate.x=1", "trainer.learning_rate has no parts"),
    ("adapter.r=4,8", "adapter.r=4,8: several values make a sweep. Add -m."),
    ("data.system=a,b", "data.system=a,b: several values make a sweep. Add -m, or put quotes around one text: '"),
    ("data.system=Name it, as JSON", "Put quotes around it: 'data.system=\"Name it, as JSON\"'."),
    ("model=Qwen/Qwen3-0.6B", "there is no such option. Write model=hub model.path=Qwen/Qwen3-0.6B."),
    ("model=../mine", "there is no such option. Write model=local model.path=../mine."),
    ("data=../names.csv", "there is no such option. Write data=local data.path=../names.csv."),
    ("data=names.jsonl", "there is no such option. Write data=local data.path=names.jsonl."),
    ("quantization=4bit", "there is no such option. Did you mean quantization=nf4? There are"),
    ("--trainer.max_steps=20", "A setting is written without dashes: trainer.max_steps=20."),
    ("trainer.report_to=swanlab", "it needs a package that is not here. Install it: pip install swanlab."),
    ("--data", "A setting is written without dashes: data=VALUE."),
    ("adapter.target_modules=q,v", "or write adapter.target_modules=[q,v] for one list"),
    ("trainer.hub_token=abc", "trainer.hub_token=***"),
    ("tracking.api_key=abc", "tracking.api_key=***: a secret does not belong"),
    ("foo", "foo: a setting is written key=value"),
    ("adapter.r=[8", "adapter.r=[8: it cannot be read"),
]


@pytest.mark.parametrize(("argument", "promised"), COMMAND_LINES, ids=[argument for argument, _ in COMMAND_LINES])
def test_a_wrong_setting_is_told_with_the_right_one(argument, promised):
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
def test_what_is_right_passes(argument):
    check_overrides([argument])


def test_each_value_of_a_sweep_is_checked():
    check_overrides(["-m", "adapter.r=4,8", "adapter=lora,dora"])
    message = refusal("-m", "adapter.r=4,eight", "trainer.learning_rate=1e-4,fast", "adapter=lora,dorra")
    for value in ("adapter.r=eight", "trainer.learning_rate=fast", "adapter=dorra"):
        assert f"\n  {value}: " in message


def test_every_number_out_of_its_limits_is_told_at_once():
    message = refusal("adapter.r=8.5", "adapter.lora_dropout=1.5", "seed=-3", "trainer.learning_rate=-1")
    assert message.startswith("4 problems")
    message = refusal("-m", "adapter.lora_dropout=2,3", "adapter.r=0,8")
    assert [line.partition(":")[0].strip() for line in message.splitlines()[1:]] == [
        "adapter.lora_dropout=2",
        "adapter.lora_dropout=3",
        "adapter.r=0",
    ]


def test_an_interval_needs_a_search():
    told = "trainer.learning_rate=interval(0,1): an interval is for a search. Add hydra/sweeper=optuna"
    assert refusal("-m", "trainer.learning_rate=interval(0,1)").startswith(told)
    check_overrides(["-m", "hydra/sweeper=optuna", "trainer.learning_rate=interval(0,1)"])


def test_a_sweep_preset_needs_no_flag():
    check_overrides(["sweep=lora_rank", "seed=1,2"])


def test_options_of_a_folder_of_ones_own_are_known(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine")
    check_overrides(["--config-dir", str(tmp_path), "data=mine"])
    check_overrides([f"hydra.searchpath=[file://{tmp_path}]", "data=mine"])
    assert "There are hub, local, usaddress" in refusal("data=mine")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("rank", "adapter.r"),
        ("epochs", "trainer.num_train_epochs"),
        ("shots", "eval.shots"),
        ("eval.shotss", "eval.shots"),
        ("tracking.zzz", None),
        ("hydra.sweeper.n", None),
    ],
)
def test_the_setting_that_was_meant_is_found(key, meant):
    assert suggest_setting(key) == meant


def test_a_text_in_pieces_is_refused_in_a_sweep_too_but_texts_in_quotes_are_not():
    assert "its commas make several values of one text" in refusal("-m", "data.system=Name it, as JSON")
    check_overrides(["-m", 'data.system="Name it, as JSON", "Name it."'])
    check_overrides(['data.system="Name it, as JSON"'])
    check_overrides(["-m", "data.system=short,long"])
