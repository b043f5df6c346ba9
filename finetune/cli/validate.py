"""Which composed configurations are wrong, and what should be written instead?"""

import os
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from finetune.cli.environment import note_variables_read
from finetune.cli.overrides import suggest_setting
from finetune.cli.trainer_rules import SHARDED, trainer_problems
from finetune.config.harness_tasks import harness_task_problems
from finetune.config.limits import LIMITS, limit_problem
from finetune.config.schema import Adapter, BadRows, Config, Data, Model, Quantization, Source
from finetune.config.settings import flatten_all
from finetune.config.spelling import spell
from finetune.data.columns import recipe_names
from finetune.data.embedded import DATA, MODELS
from finetune.data.rows import FILE_KINDS, suggest_file
from finetune.errors import UserError, did_you_mean, raise_problems, suggest_and_list
from finetune.evaluation.metrics import METRICS

PATHS = ("data.path", "model.path")
SHARDING = [f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")]


def read_config(config: DictConfig) -> Config:
    """The composed configuration as dataclasses; a missing path becomes empty, which is reported with the rest.

    Raises UserError for other settings that no file of the configuration gives, and for interpolations that fail.
    """
    note_variables_read(flatten_all(cast(dict[str, Any], OmegaConf.to_container(config))))
    try:
        missing = OmegaConf.missing_keys(config)
        given = config.copy()
        for key in missing.intersection(PATHS):
            OmegaConf.update(given, key, "")
        raise_problems(
            [f"{key} is not set. Write it in its group's file." for key in sorted(missing.difference(PATHS))]
        )
        settings = OmegaConf.to_object(given)
    except OmegaConfBaseException as error:
        raise UserError(explain_error(error)) from error
    assert isinstance(settings, Config)
    return settings


def explain_error(error: Exception) -> str:
    """What an error of composing means: the file, the setting, why it is wrong and what to write instead."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}:{mark.line + 1}: this is no YAML: {error.problem}. Compare it with the files beside it."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: there is no such option.{suggest_and_list(option, error.options, f'{group}=')}"
    text = f"{error}\n{error.__cause__ or ''}"
    file, key = re.search(r"In '(\S+)': \w+ raised while composing", text), re.search(r"full_key: (\S+)", text)
    where = f"{file[1]}.yaml: " if file else ""
    if key is None:
        return where + " ".join(text.split())
    if re.search(r"Key '.*' not in|is not in struct", text):
        last = key[1].rpartition(".")[2]
        meant = suggest_setting(key[1])
        beside = getattr(error.__cause__ or error, "parent_node", None) or ()
        near = f" Did you mean {meant}?" if meant else did_you_mean(last, map(str, beside), key[1].removesuffix(last))
        return f"{where}{key[1]}: there is no such setting.{near}"
    boilerplate = re.compile(r"\s+\w+(: |=)|In '|To append")
    lines = [line for line in text.splitlines() if line.strip() and not boilerplate.match(line)]
    return f"{where}{key[1]}: {' '.join(lines)}."


def validate_config(config: Config) -> Config:
    """Return `config`, or raise one UserError of all its problems: each key, its value, why, what to write instead."""
    limited = [key for key in LIMITS if not key.startswith("trainer.")]
    problems = [
        *filter(None, (limit_problem(key, attrgetter(key)(config)) for key in limited)),
        *_check_launcher(),
        *_check_names(config),
        *_check_path("data", config.data),
        *_check_data(config.data),
        *_check_path("model", config.model),
        *_check_template_variables(config.model),
        *_check_quantization(config.quantization, config.adapter),
        *(_check_adapter(config.adapter) if config.adapter.enabled else ()),
        *harness_task_problems(config.eval.harness_tasks),
        *_check_effect(config),
        *trainer_problems(config.trainer, config.model.attn_implementation.value),
    ]
    raise_problems(problems)
    return config


def _check_launcher() -> Iterator[str]:
    """What `accelerate launch` was told to do, which it passes on in the environment."""
    for name in SHARDING:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            yield f"accelerate launch set {name}: {SHARDED}. Launch with --multi_gpu, without sharding."


def _check_names(config: Config) -> Iterator[str]:
    for key in ("name", "sweep.name", "data.name", "model.name"):
        name = attrgetter(key)(config)
        if name is not None and not re.fullmatch(r"\w[\w.+=-]*", name):
            yield f"{key}={name}: it names a folder. Use letters, digits and . _ - + =, a letter or digit first."


def _check_effect(config: Config) -> Iterator[str]:
    """The settings that were changed although nothing reads them."""
    defaults = Config()
    for keys, reason in _settings_without_effect(config):
        for key in keys.split():
            value = attrgetter(key)(config)
            if value != attrgetter(key)(defaults):
                yield f"{key}={spell(value)}: it has no effect here: {reason}."


def _settings_without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that nothing reads beside the others, and why."""
    data, model, quantization = config.data, config.model, config.quantization
    if data.source is not Source.hub:
        yield "data.subset data.revision data.train_split", "it is for data=hub"
    if data.bad_rows is BadRows.error:
        yield "data.max_bad_rows", "data.bad_rows=error allows no bad row. Add data.bad_rows=skip"
    if data.validation is not None:
        yield "data.validation_fraction", f"data.validation={data.validation} gives the rows"
    if data.test is not None:
        yield "data.test_fraction", f"data.test={data.test} gives the rows"
    if model.source is not Source.hub:
        yield "model.revision", "it is for models of the hub"
    if model.source is Source.embedded:
        yield "model.trust_remote_code", "an embedded model brings no code"
    if model.plain_prompt:
        yield "model.chat_template_kwargs", "model.plain_prompt=true uses no template"
    if not quantization.load_in_4bit:
        keys = " ".join(f"quantization.{name}" for name in vars(quantization) if name.startswith("bnb_4bit_"))
        yield keys, "it is for 4 bit. Add quantization=nf4 or quantization=fp4"
    if not quantization.load_in_8bit:
        yield "quantization.llm_int8_threshold", "it is for 8 bit. Add quantization=int8"
    if not config.adapter.enabled:
        keys = " ".join(f"adapter.{name}" for name in vars(Adapter()) if name != "enabled")
        yield keys, "adapter=full trains all weights, with no adapter"
    if not config.eval.harness_tasks:
        yield "eval.harness_limit", "it is for eval.harness_tasks"
    if not config.eval.best_prompt:
        yield "data.system_candidates", "nothing tries them. Add eval=best_prompt"
    if config.eval.temperature == 0:
        reason = "eval.temperature=0 always takes the likeliest token. Add eval.temperature=1 to sample"
        yield "eval.top_p eval.top_k", reason


def _check_path(group: str, section: Data | Model) -> Iterator[str]:
    source, path, file = section.source, section.path, Path(section.path).expanduser()
    if not path:
        local = "FOLDER" if group == "model" else "FILE"
        example = {Source.local: local, Source.hub: "OWNER/NAME", Source.embedded: "NAME"}[source]
        yield f"{group}.path is not set, and {group}={section.name} needs it. Write {group}.path={example}."
    elif source is Source.embedded:
        if path not in MODELS | DATA and (file.suffix in FILE_KINDS or file.exists()):
            yield f"{group}.path={path}: {group}={section.name} brings its own. For yours add {group}=local."
    elif source is Source.hub:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            yield f"{group}.path={path}: this is no name on the hub. Write OWNER/NAME, or {group}=local for your own."
    elif group == "data":
        yield from _check_file("data.path", path)
    elif not (file / "config.json").is_file():
        yield f"model.path={path}: no config.json is there. Give a folder that save_pretrained wrote, or model=hub."


def _check_file(key: str, path: str) -> Iterator[str]:
    file = Path(path).expanduser()
    if file.is_dir():
        inside = sorted(str(item) for item in file.iterdir() if item.suffix in FILE_KINDS)
        yield f"{key}={path}: this is a folder; give a file{f' in it, such as {inside[0]}' if inside else ''}."
    elif not file.is_file():
        yield f"{key}={path}: there is no such file.{suggest_file(file)}"


def _check_data(data: Data) -> Iterator[str]:
    if data.recipe not in recipe_names():
        hint = suggest_and_list(data.recipe, recipe_names())
        yield f"data.recipe={data.recipe}: there is no such file in data_recipes/.{hint}"
    for metric in data.metrics:
        if metric not in METRICS:
            yield f"data.metrics: {metric} is no metric.{suggest_and_list(metric, METRICS)}"
    for metric in sorted({metric for metric in data.metrics if data.metrics.count(metric) > 1}):
        yield f"data.metrics: {metric} is named more than once."
    for key, file in (("data.validation", data.validation), ("data.test", data.test)):
        if file is not None and data.source is not Source.hub:
            yield from _check_file(key, file)
    if data.validation is None and data.test is None and data.validation_fraction + data.test_fraction >= 1:
        yield (
            f"data.validation_fraction={data.validation_fraction} and data.test_fraction={data.test_fraction}: "
            "together they must be below 1, or nothing is left to train on."
        )


def _check_template_variables(model: Model) -> Iterator[str]:
    for name, value in model.chat_template_kwargs.items():
        if not str(name).isidentifier() or not isinstance(value, bool | int | float | str):
            yield (
                f"model.chat_template_kwargs.{name}={spell(value)}: expected the name of a variable of the chat "
                "template, and true, false, a number or text."
            )


def _check_quantization(quantization: Quantization, adapter: Adapter) -> Iterator[str]:
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield (
            "quantization.load_in_4bit=true and quantization.load_in_8bit=true: only one is possible. "
            "Write quantization=nf4, fp4 or int8."
        )
    if not adapter.enabled and (quantization.load_in_4bit or quantization.load_in_8bit):
        bits = "4" if quantization.load_in_4bit else "8"
        yield (
            f"adapter=full with a {bits}-bit base: quantised weights cannot be trained. "
            "Write quantization=none to train all weights, or adapter=lora to train an adapter."
        )


def _check_adapter(adapter: Adapter) -> Iterator[str]:
    modules, layers = adapter.target_modules, adapter.layers_to_transform
    names = modules if isinstance(modules, list) else []
    if modules != "all-linear" and not (names and all(isinstance(name, str) for name in names)):
        yield (
            f"adapter.target_modules={spell(modules)}: it must be all-linear or a list of modules. "
            "Write, for example, adapter.target_modules=[q_proj,v_proj]."
        )
    if "lm_head" in names:
        yield (
            "adapter.target_modules: lm_head cannot carry an adapter, because TRL reads its weight directly. "
            "Leave it out, or train it in full with adapter.modules_to_save=[lm_head]."
        )
    if layers is not None and isinstance(modules, str):  # PEFT's rule
        yield (
            f"adapter.layers_to_transform={spell(layers)}: it needs the modules by name. "
            "Add adapter.target_modules=[q_proj,v_proj] or the like."
        )
    if layers is not None and (not layers or min(layers) < 0):
        yield f"adapter.layers_to_transform={spell(layers)}: it must list layers, counted from 0."
