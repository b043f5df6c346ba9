"""Every setting matters: changing it changes something that can be observed, so none is read by nothing."""

import json
import math
import tempfile
import time
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints
from unittest.mock import MagicMock

import pytest
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, LlamaConfig
from trl import SFTConfig

import run
from finetune.cli.compose import compose_config
from finetune.config.schema import Config, Quantization, Source
from finetune.data.columns import find_recipe
from finetune.data.splits import Example, Splits, load_splits
from finetune.errors import UserError
from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.best_prompt import list_candidates
from finetune.evaluation.forgetting import choose_general_prompts
from finetune.evaluation.lm_harness import load_harness_tasks, score_harness_tasks
from finetune.evaluation.prompts import choose_prompts
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
from finetune.model.tokenizer import load_tokenizer
from finetune.planning.plan import make_plan, require_memory
from finetune.planning.workload import plan_prompts
from finetune.reporting.wandb import start_tracking
from finetune.runs.folder import data_name, move_aside, run_folder, run_labels
from finetune.training.checkpoints import TimedCheckpoints
from finetune.training.counters import Counters
from finetune.training.prepare import PreparedRun, build_sft_config, prepare_run
from finetune.training.tokenize import tokenize_splits

TESTS = Path(__file__).parents[1]

LOCAL = ["data=local", "data.path=FOLDER/rows.jsonl"]
BAD = ["data=local", "data.path=FOLDER/bad.jsonl"]
HUB = ["data=hub", "data.path=owner/name"]
HUB_MODEL = ["model=hub", "model.path=owner/name"]

# A task of lm-evaluation-harness.
TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}"
"""

# Setting -> what it is changed to, and what it is changed beside.
CHANGES = {
    "data.name": ("other", []),
    "data.source": ("local", []),
    "data.path": ("FOLDER/others.jsonl", LOCAL),
    "data.recipe": ("alpaca", LOCAL),
    "data.columns": ("{prompt:other}", LOCAL),
    "data.system": ("Be brief.", LOCAL),
    "data.system_candidates": ("[Be brief.]", ["eval.best_prompt=true", *LOCAL]),
    "data.subset": ("main", HUB),
    "data.revision": ("v2", HUB),
    "data.train_split": ("all", HUB),
    "data.validation": ("FOLDER/others.jsonl", LOCAL),
    "data.test": ("FOLDER/others.jsonl", LOCAL),
    "data.validation_fraction": ("0.3", LOCAL),
    "data.test_fraction": ("0.3", LOCAL),
    "data.seed": ("1", LOCAL),
    "data.group": ("kind", LOCAL),
    "data.bad_rows": ("skip", BAD),
    "data.max_bad_rows": ("2", [*BAD, "data.bad_rows=skip"]),
    "data.overlap": ("allow", [*LOCAL, "data.test=FOLDER/rows.jsonl"]),
    "data.max_train_rows": ("5", LOCAL),
    "data.max_cut_share": ("1", [*LOCAL, "trainer.max_length=10"]),
    "data.control_tokens": ("allow", ["data=local", "data.path=FOLDER/control.jsonl"]),
    "data.metrics": ("[rouge_l]", LOCAL),
    "model.name": ("other", []),
    "model.source": ("hub", []),
    "model.path": ("owner/other", HUB_MODEL),
    "model.revision": ("v2", HUB_MODEL),
    "model.dtype": ("float16", []),
    "model.attn_implementation": ("eager", []),
    "model.plain_prompt": ("true", LOCAL),
    "model.chat_template_kwargs": ("{mood:glad}", [*LOCAL, "trainer.chat_template_path=FOLDER/chat.jinja"]),
    "model.trust_remote_code": ("true", HUB_MODEL),
    "quantization.load_in_4bit": ("true", ["quantization=none"]),
    "quantization.load_in_8bit": ("true", ["quantization=none"]),
    "quantization.bnb_4bit_quant_type": ("fp4", []),
    "quantization.bnb_4bit_compute_dtype": ("float16", []),
    "quantization.bnb_4bit_use_double_quant": ("false", []),
    "quantization.llm_int8_threshold": ("3.0", ["quantization=int8"]),
    "adapter.enabled": ("false", ["quantization=none"]),
    "adapter.r": ("2", []),
    "adapter.lora_alpha": ("2", []),
    "adapter.lora_dropout": ("0.5", []),
    "adapter.bias": ("all", []),
    "adapter.use_dora": ("true", []),
    "adapter.use_rslora": ("true", []),
    "adapter.target_modules": ("[q_proj]", []),
    "adapter.modules_to_save": ("[norm]", []),
    "adapter.layers_to_transform": ("[0]", ["adapter.target_modules=[q_proj]"]),
    "trainer": ("3e-5", []),
    "eval.max_prompts": ("3", []),
    "eval.shots": ("0", []),
    "eval.best_prompt": ("true", LOCAL),
    "eval.tuned_few_shot": ("true", []),
    "eval.retention": ("false", []),
    "eval.harness_tasks": ("[FOLDER/task.yaml]", []),
    "eval.harness_limit": ("2", ["eval.harness_tasks=[FOLDER/task.yaml]"]),
    "eval.batch_size": ("3", []),
    "eval.max_new_tokens": ("3", []),
    "eval.temperature": ("0.5", []),
    "eval.top_p": ("0.5", ["eval.temperature=1"]),
    "eval.top_k": ("3", ["eval.temperature=1"]),
    "tracking.enabled": ("false", []),
    "tracking.mode": ("offline", []),
    "tracking.project": ("other", []),
    "tracking.entity": ("other", []),
    "tracking.group": ("other", []),
    "tracking.tags": ("[other]", []),
    "plan.memory_gib": ("1000", LOCAL),
    "plan.tflops": ("7", ["plan.tflops=5", *LOCAL]),
    "checkpoint.every_minutes": ("50", ["checkpoint.max_share=1"]),
    "checkpoint.max_share": ("0.5", []),
    "overwrite": ("true", []),
    "max_nonfinite_steps": ("2", [*LOCAL, "trainer=smoke", "trainer.eval_strategy=no", "force=true", "tracking=none"]),
    "stage": ("preview", [*LOCAL, "force=true", "tracking=none"]),
    "force": ("true", ["plan.memory_gib=0.01", *LOCAL]),
    "seed": ("7", []),
    "name": ("other", []),
    "output_dir": ("elsewhere", []),
}
# Settings that go with the change.
WITH = {
    "data.source": ["data.path=FOLDER/rows.jsonl", "data.recipe=prompt_completion"],
    "model.source": ["model.path=owner/name"],
}


def settings(section=Config, prefix=""):
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from settings(kind, f"{name}.")
        else:
            yield prefix + name


class SeenError(Exception):
    """Raised in place of work that would follow what is observed."""


def test_the_table_names_every_setting():
    assert set(CHANGES) == {name for name in settings() if not name.startswith("sweep.")}


def test_the_tests_of_sweeps_try_every_setting_of_theirs():
    tested = "".join(file.read_text() for folder in ("search", "sweeps") for file in TESTS.glob(f"{folder}/test_*.py"))
    assert not [name for name in settings() if name.startswith("sweep.") and name not in tested]


# Their observers plan a run, several times where it does not fit, or write prompts in many ways.
SLOW = {"force", "plan.memory_gib", "plan.tflops", "data.system_candidates", "eval.best_prompt"}


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(CHANGES)]
)
def test_changing_it_changes_something(setting, tmp_path, monkeypatch, tiny_model):
    table = [{"prompt": f"{i}", "other": f"o{i}", "completion": "c", "kind": i // 2} for i in range(30)]
    alpaca = [{"instruction": f"Do {row['prompt']}", "output": "c"} for row in table]
    lines = [json.dumps(row | other) + "\n" for row, other in zip(table, alpaca, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "others.jsonl").write_text("".join(line.replace('"c"', '"d"') for line in lines[:20]))
    (tmp_path / "control.jsonl").write_text("".join(line.replace('"c"', '"<|im_end|>"') for line in lines))
    (tmp_path / "bad.jsonl").write_text("".join([*lines, "{\n" * 3]))
    (tmp_path / "task.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    (tmp_path / "chat.jinja").write_text("{{ mood }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    change, beside = CHANGES[setting]
    key = "trainer.learning_rate" if setting == "trainer" else setting
    more = WITH.get(setting, [])
    observe = OBSERVERS.get(setting) or OBSERVERS[setting.partition(".")[0]]
    before = observe(composed(tmp_path, beside), monkeypatch, tiny_model)
    after = observe(composed(tmp_path, [*beside, f"{key}={change}", *more]), monkeypatch, tiny_model)
    assert before != after


def composed(folder, overrides):
    return compose_config([text.replace("FOLDER", str(folder)) for text in overrides])


def read_data(config, monkeypatch, _):
    def load_dataset(*arguments, **options):
        raise SeenError(arguments, options)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    try:
        splits = load_splits(config.data)
    except (SeenError, UserError) as call:
        return repr(call)
    found = find_recipe(config.data)
    return splits, data_name(config), config.data.metrics or found.METRICS


def load_model(config, monkeypatch, tiny_model):
    def from_pretrained(*arguments, **options):
        raise SeenError(arguments, options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: LlamaConfig())
    machine = choose_device(config.model, config.quantization, config.adapter)
    with pytest.raises(SeenError) as call:
        load_base(config.model, config.quantization, machine)
    return repr(call.value), run_labels(config).group


def adapt(config, _, tiny_model):
    config.model.source, config.model.path = Source.local, str(tiny_model)
    config.quantization = Quantization()
    machine = choose_device(config.model, config.quantization, config.adapter)
    trained = add_adapter(load_base(config.model, config.quantization, machine), config.adapter, config.seed)
    layer = (
        trained.get_submodule("base_model.model.model.layers.0.self_attn.q_proj") if config.adapter.enabled else None
    )
    return (
        [(name, p.shape) for name, p in trained.named_parameters() if p.requires_grad],
        layer and (layer.scaling, str(layer.lora_dropout)),
    )


def check_rows(config, _, tiny_model):
    """The tokens of the rows, or what is wrong with them."""
    config.model.source, config.model.path = Source.local, str(tiny_model)
    machine = choose_device(config.model, config.quantization, config.adapter)
    try:
        return prepare_run(config, load_splits(config.data), machine, run_folder(config)).rows.whole["train"].to_list()
    except UserError as error:
        return str(error)


def staged(config, monkeypatch, tiny_model):
    """How far the program goes: a preview ends before the model is loaded."""

    def from_pretrained(*arguments, **options):
        raise SeenError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    config.model.source, config.model.path = Source.local, str(tiny_model)
    try:
        return run.run(config)
    except SeenError:
        return "the model is loaded"


def build_trainer(config, _, tiny_model):
    machine = choose_device(config.model, config.quantization, config.adapter)
    return build_sft_config(config.trainer, machine, Path("same"), config.seed, 10)


def generation(config, monkeypatch, tiny_model):
    """What the model is given to answer five prompts."""
    calls = []

    def generate(_, input_ids, generation_config, **options):
        calls.append((input_ids.tolist(), generation_config.to_dict()))
        return functional.pad(input_ids, (0, 1), value=generation_config.eos_token_id[0])

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    monkeypatch.setenv("FINETUNE_CACHE", tempfile.mkdtemp(dir=tiny_model.parent))  # nothing is answered yet
    config.model.source, config.model.path = Source.local, str(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = load_tokenizer(config.model)

    examples = [Example([{"role": "user", "content": str(i)}], "{}", "") for i in range(5)]
    splits = Splits(examples, examples, examples, {}, "")
    settings = SFTConfig(use_cpu=True, bf16=False, activation_checkpointing=False)
    rows = tokenize_splits(splits, tokenizer, settings)
    prepared = PreparedRun(splits, tokenizer, base, rows, notes=[], settings=settings)
    prompts = choose_prompts(config, prepared)
    answer_prompts(prompts, base, tokenizer, {}, AnswerCache.of(base), lambda *_: None, lambda *_: None)
    return calls, list(choose_general_prompts(config, prepared))


def ways_of_prompting(config, _, tiny_model):
    config.model.source, config.model.path = Source.local, str(tiny_model)
    machine = choose_device(config.model, config.quantization, config.adapter)
    prepared = prepare_run(config, load_splits(config.data), machine, run_folder(config))
    search = list_candidates(config, prepared, choose_prompts(config, prepared))
    return search and list(search.candidates)


def ask_harness(config, monkeypatch, tiny_model):
    calls = []
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda lm, **given: calls.append(given) or {"results": {}})
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = load_tokenizer(config.model)
    score_harness_tasks(base, tokenizer, load_harness_tasks(config.eval), {}, lambda _: None)
    return [(call["tasks"], call["limit"]) for call in calls]


def track(config, monkeypatch, tiny_model):
    """What wandb is given, and what is printed about it."""
    calls, lines = [], []
    monkeypatch.setattr("wandb.init", lambda **given: calls.append(given) or MagicMock())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with start_tracking(config.tracking, run_labels(config), tiny_model.parent / "tracked", print_line=lines.append):
        return [{key: call[key] for key in ("mode", "project", "entity", "group", "tags")} for call in calls], lines


def place(config, *_):
    return run_folder(config), load_splits(config.data).fingerprint


def planned(config, _, tiny_model):
    config.model.source, config.model.path = Source.local, str(tiny_model)
    config.plan.tflops = config.plan.tflops or 1.0
    machine = choose_device(config.model, config.quantization, config.adapter)
    prepared = prepare_run(config, load_splits(config.data), machine, run_folder(config))
    try:
        run = plan_prompts(config, prepared, machine)
        require_memory(run)
    except UserError:
        return "refused"
    made = make_plan(run, 0.0)
    return made.measured, made.need.available // 2**40 if config.force else made.need.available > 900 * 2**30


def time_checkpoints(config, *_):
    """Whether a checkpoint is due a quarter of an hour and an hour after the last, which have taken a tenth so far."""
    timed, due = TimedCheckpoints(config.checkpoint, Counters(seconds=10.0, checkpoint_seconds=1.0)), []
    for minutes in (15, 60):
        control = SimpleNamespace(should_save=False)
        timed.saved_at = time.monotonic() - 60 * minutes
        timed.on_step_end(None, None, control)
        due.append(control.should_save)
    return due


def begin_again(config, _, tiny_model):
    folder = tiny_model.parent / "begun"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("# identity: another\nseed: 3\n")
    return move_aside(config, folder)


def train_on_nan(config, monkeypatch, tiny_model):
    """What is said of a run whose every loss is NaN."""
    config.model.source, config.model.path, config.output_dir = Source.local, str(tiny_model), str(tiny_model.parent)
    config.quantization, config.trainer["max_steps"] = Quantization(), 5
    loss = functional.cross_entropy
    monkeypatch.setattr(functional, "cross_entropy", lambda *args, **given: loss(*args, **given) * math.nan)
    with pytest.raises(FloatingPointError) as error:
        run.run(config)
    return str(error.value).partition(":")[0]


OBSERVERS = {
    "checkpoint": time_checkpoints,
    "overwrite": begin_again,
    "max_nonfinite_steps": train_on_nan,
    "plan": planned,
    "force": planned,
    "data.max_cut_share": check_rows,
    "data.overlap": check_rows,
    "data.control_tokens": check_rows,
    "model.plain_prompt": check_rows,
    "model.chat_template_kwargs": check_rows,
    "stage": staged,
    "data.system_candidates": ways_of_prompting,
    "eval.best_prompt": ways_of_prompting,
    "data": read_data,
    "model": load_model,
    "quantization": load_model,
    "adapter": adapt,
    "trainer": build_trainer,
    "eval": generation,
    "eval.harness_tasks": ask_harness,
    "eval.harness_limit": ask_harness,
    "tracking": track,
    "seed": build_trainer,
    "name": place,
    "output_dir": place,
}
