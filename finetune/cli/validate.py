"""Which composed configurations are wrong, and what should be written instead?

Nothing heavy is imported here, so that the answer takes no longer than reading it.
"""

import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli.hydra_error import explain_error
from finetune.cli.trainer_rules import trainer_problems
from finetune.config.harness_tasks import harness_task_problems
from finetune.config.limits import LIMITS, limit_problem
from finetune.config.schema import Adapter, BadRows, Config, Data, Eval, Model, Quantization, Source, to_dataclass
from finetune.config.spelling import spell
from finetune.data.embedded import DATA, MODELS
from finetune.data.rows import FILE_KINDS
from finetune.errors import UserError, did_you_mean, raise_problems
from finetune.evaluation.metrics import METRICS

RECIPES = Path(__file__).parents[2] / "data_recipes"
# What a data set or model needs besides its group file, and how to give it.
PLACES = {Source.local: "FILE", Source.hub: "OWNER/NAME", Source.embedded: "NAME"}
FOUR_BIT = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")


def read_config(config: DictConfig) -> Config:
    """The composed configuration as dataclasses; a missing path becomes empty, for `validate` to report with the rest.

    Raises UserError for other settings that no file of the configuration gives, and for interpolations that fail.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        given = config.copy()
        for key in filter(_is_path, missing):
            OmegaConf.update(given, key, "")
        raise_problems([f"{key} is not set. Write it in its group's file." for key in missing if not _is_path(key)])
        return to_dataclass(given)
    except OmegaConfBaseException as error:
        raise UserError(explain_error(error)) from error


def validate_config(config: Config) -> None:
    """Raise one UserError that names every problem of `config`: the key, the value, why, and what to write instead."""
    raise_problems(
        [
            *_ranges(config),
            *_name("name", config.name),
            *_name("sweep.name", config.sweep.name),
            *_name("data.name", config.data.name),
            *_name("model.name", config.model.name),
            *_data(config.data),
            *_model(config.model),
            *_quantization(config.quantization),
            *_adapter(config.adapter, config.quantization),
            *_eval(config.eval),
            *trainer_problems(config.trainer, config.model.attn_implementation.value),
        ]
    )


def _is_path(key: str) -> bool:
    return key in ("data.path", "model.path")


def _ranges(config: Config) -> Iterator[str]:
    for key in LIMITS:
        if problem := limit_problem(key, attrgetter(key)(config)):
            yield problem


def _name(key: str, name: str | None) -> Iterator[str]:
    if name is not None and not re.fullmatch(r"\w[\w.+=-]*", name):
        yield f"{key}={name}: it names a folder. Use letters, digits and . _ - + =, a letter or digit first."


def _data(data: Data) -> Iterator[str]:
    yield from _place("data", data)
    yield from _recipe(data.recipe)
    yield from _metrics(data.metrics)
    if data.source is not Source.hub:
        yield from _without_effect("data", data, ("subset", "revision", "train_split"), "it is for data=hub")
    if data.bad_rows is BadRows.error:
        reason = "data.bad_rows=error allows no bad row. Add data.bad_rows=skip"
        yield from _without_effect("data", data, ("max_bad_rows",), reason)
    for part in ("validation", "test"):
        own = getattr(data, part)
        if own is None:
            continue
        yield from _without_effect("data", data, (f"{part}_fraction",), f"data.{part}={own} gives the rows")
        if data.source is not Source.hub and not Path(own).expanduser().is_file():
            yield f"data.{part}={own}: {_no_file(own)}"
    if data.validation is None and data.test is None and data.validation_fraction + data.test_fraction >= 1:
        yield (
            f"data.validation_fraction={data.validation_fraction} and data.test_fraction={data.test_fraction}: "
            "together they must be below 1, or nothing is left to train on."
        )


def _place(group: str, section: Data | Model) -> Iterator[str]:
    what = "FOLDER" if group == "model" and section.source is Source.local else PLACES[section.source]
    path = section.path
    if not path:
        yield f"{group}.path is not set, and {group}={section.name} needs it. Write {group}.path={what}."
    elif section.source is Source.embedded and path not in MODELS | DATA and _seems_a_place(path):
        yield f"{group}.path={path}: {group}={section.name} brings its own. For yours add {group}=local."
    elif section.source is Source.hub and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        yield f"{group}.path={path}: this is no name on the hub. Write OWNER/NAME, or {group}=local for your own."
    elif section.source is Source.local and group == "data" and not Path(path).expanduser().is_file():
        yield f"data.path={path}: {_no_file(path)}"
    elif (
        section.source is Source.local and group == "model" and not (Path(path).expanduser() / "config.json").is_file()
    ):
        yield f"model.path={path}: no config.json is there. Give a folder that save_pretrained wrote, or model=hub."


def _seems_a_place(path: str) -> bool:
    return Path(path).suffix in FILE_KINDS or Path(path).expanduser().exists()


def _no_file(path: str) -> str:
    path = str(Path(path).expanduser())
    folder = Path(path).parent
    if Path(path).is_dir():
        inside = sorted(str(file) for file in Path(path).iterdir() if file.suffix in FILE_KINDS)
        return f"this is a folder; give a file{f' in it, such as {inside[0]}' if inside else ''}."
    files = [str(file) for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    return f"there is no such file.{did_you_mean(path, files)}"


def _recipe(recipe: str) -> Iterator[str]:
    known = sorted(file.stem for file in RECIPES.glob("[!_]*.py"))
    if recipe not in known:
        yield (
            f"data.recipe={recipe}: there is no such file in data_recipes/.{did_you_mean(recipe, known)} "
            f"There are {', '.join(known)}."
        )


def _metrics(metrics: list[str]) -> Iterator[str]:
    for metric in metrics:
        if metric not in METRICS:
            yield (
                f"data.metrics: {metric} is no metric.{did_you_mean(metric, METRICS)} There are {', '.join(METRICS)}."
            )
    for metric in sorted({metric for metric in metrics if metrics.count(metric) > 1}):
        yield f"data.metrics: {metric} is named more than once."


def _model(model: Model) -> Iterator[str]:
    yield from _place("model", model)
    if model.source is not Source.hub:
        yield from _without_effect("model", model, ("revision",), "it is for models of the hub")
    if model.source is Source.embedded:
        yield from _without_effect("model", model, ("trust_remote_code",), "an embedded model brings no code")
    if model.plain_prompt:
        yield from _without_effect(
            "model", model, ("chat_template_kwargs",), "model.plain_prompt=true uses no template"
        )
    for name, value in model.chat_template_kwargs.items():
        if not str(name).isidentifier() or not isinstance(value, bool | int | float | str):
            yield (
                f"model.chat_template_kwargs.{name}={spell(value)}: expected the name of a variable of the chat "
                "template, and true, false, a number or text."
            )


def _quantization(quantization: Quantization) -> Iterator[str]:
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield (
            "quantization.load_in_4bit=true and quantization.load_in_8bit=true: only one is possible. "
            "Write quantization=nf4, fp4 or int8."
        )
    if not quantization.load_in_4bit:
        reason = "it is for 4 bit. Add quantization=nf4 or quantization=fp4"
        yield from _without_effect("quantization", quantization, FOUR_BIT, reason)
    if not quantization.load_in_8bit:
        reason = "it is for 8 bit. Add quantization=int8"
        yield from _without_effect("quantization", quantization, ("llm_int8_threshold",), reason)


def _adapter(adapter: Adapter, quantization: Quantization) -> Iterator[str]:
    if not adapter.enabled:
        if quantization.load_in_4bit or quantization.load_in_8bit:
            bits = "4" if quantization.load_in_4bit else "8"
            yield (
                f"adapter=full with a {bits}-bit base: quantised weights cannot be trained. "
                "Write quantization=none to train all weights, or adapter=lora to train an adapter."
            )
        names = [name for name in vars(adapter) if name != "enabled"]
        yield from _without_effect("adapter", adapter, names, "adapter=full trains all weights, with no adapter")
        return
    yield from _target_modules(adapter.target_modules)
    if adapter.layers_to_transform is not None:
        layers = spell(adapter.layers_to_transform)
        if isinstance(adapter.target_modules, str):  # PEFT's rule
            yield (
                f"adapter.layers_to_transform={layers}: it needs the modules by name. "
                "Add adapter.target_modules=[q_proj,v_proj] or the like."
            )
        if not adapter.layers_to_transform or min(adapter.layers_to_transform) < 0:
            yield f"adapter.layers_to_transform={layers}: it must list layers, counted from 0."


def _target_modules(modules: Any) -> Iterator[str]:
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


def _eval(settings: Eval) -> Iterator[str]:
    yield from harness_task_problems(settings.harness_tasks)
    if not settings.harness_tasks:
        yield from _without_effect("eval", settings, ("harness_limit",), "it is for eval.harness_tasks")
    if settings.temperature == 0:
        reason = "eval.temperature=0 always takes the likeliest token. Add eval.temperature=1 to sample"
        yield from _without_effect("eval", settings, ("top_p", "top_k"), reason)


def _without_effect(group: str, section: Any, names: Iterable[str], reason: str) -> Iterator[str]:
    """The settings of `names` that were changed although nothing reads them."""
    default = type(section)()
    for name in names:
        value = getattr(section, name)
        if value != getattr(default, name):
            yield f"{group}.{name}={spell(value)}: it has no effect here: {reason}."
