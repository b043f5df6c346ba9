"""Which settings on the command line are wrong? Checked before Hydra composes, as it stops at the first mistake."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra._internal.utils import get_args_parser  # private: hydra, it alone knows the options of its command line
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Transformer, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from finetune.cli.trainer_rules import RENAMED_FIELDS, trainer_field_problem, unknown_trainer_field
from finetune.config.limits import limit_problem
from finetune.config.schema import Config
from finetune.config.sft_fields import WORDS, sft_fields
from finetune.errors import did_you_mean, nearest_option, raise_problems, suggest_and_list
from finetune.secrets import names_secret

CONF = Path(__file__).parents[2] / "conf"
OPTIONAL = ("experiment", "sweep")  # groups of which no option need be chosen
# What people call a setting elsewhere.
RENAMED = RENAMED_FIELDS | {"alpha": "adapter.lora_alpha", "dropout": "adapter.lora_dropout"}
RENAMED |= dict.fromkeys(("rank", "lora_r"), "adapter.r")
# What people call an option elsewhere.
RENAMED_OPTIONS = {
    "quantization": {"4bit": "nf4", "qlora": "nf4", "int4": "nf4", "8bit": "int8", "bf16": "none", "fp16": "none"},
    "adapter": {"qlora": "lora", "none": "full"},
}
OPEN = ("data.columns.", "model.chat_template_kwargs.")  # mappings whose keys are the user's
UNLISTED = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)  # values that only the sweeper can list


@dataclass(frozen=True)
class Grammar:
    """What may be written on the command line: groups with their options, and settings with their types."""

    options: dict[str, list[str]]
    types: dict[str, Any]
    multirun: bool
    searched: bool  # a search draws the values, so that an interval may be given


def check_overrides(arguments: list[str]) -> None:
    """Raise one UserError that names every wrong override among the command line's `arguments`."""
    flags, unknown_flags = get_args_parser().parse_known_args(arguments)
    if flags.config_path or flags.config_name or flags.shell_completion:
        return  # not our configuration
    commands = [f"--{name}" for name in ("run", "multirun", "cfg", "info") if getattr(flags, name)]
    problems = [f"{' and '.join(commands)}: only one is possible at a time."] if len(commands) > 1 else []
    overrides: list[Override] = []
    problems += map(_describe_flag, unknown_flags)
    for text in [] if unknown_flags else flags.overrides:  # which may be the value of such a flag
        try:
            overrides.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            problems.append(_describe_unreadable(text, error))
    paths = [override.value() for override in overrides if override.key_or_group == "hydra.searchpath"]
    added = [str(folder).removeprefix("file://") for path in paths if isinstance(path, list) for folder in path]
    folders = [CONF, *(Path(folder) for folder in (flags.config_dir, *added) if folder)]
    keys = {override.key_or_group for override in overrides}
    grammar = Grammar(
        _find_options(folders),
        _find_types(Config),
        multirun=flags.multirun or bool(keys & {"sweep", "hydra.mode"}),
        searched=bool(keys & {"sweep", "hydra/sweeper"}),
    )
    for override in overrides:
        if override.key_or_group.startswith(("hydra.run.", "hydra.sweep.")):  # without effect here
            hint = "Write output_dir=FOLDER and name=NAME"
            problems.append(f"{override.input_line}: a run has a folder of its own. {hint}.")
        elif override.package is None and not override.is_hydra_override():
            problems.extend(_check_override(override, grammar))
    raise_problems(problems)


def suggest_setting(key: str) -> str | None:
    """The setting or group that an unknown `key` was probably meant to be."""
    settings = [*_find_options([CONF]), *_find_types(Config), *(f"trainer.{name}" for name in sft_fields())]
    section, _, last = key.rpartition(".")
    if key.startswith("hydra"):
        return None  # Hydra's own
    if last in RENAMED:
        return RENAMED[last]
    same_name = [name for name in settings if name.rpartition(".")[2] == last]
    beside = [name for name in settings if section and name.startswith(f"{section}.")]
    elsewhere = [] if beside else settings
    return _nearest_key(key, same_name, 0) or _nearest_key(last, beside) or _nearest_key(key, elsewhere)


def _nearest_key(word: str, keys: list[str], cutoff: float = 0.6) -> str | None:
    """The key that is spelt most like `word`, its sections left out where `word` has none."""
    keys_by_spelling = {key if "." in word else key.rpartition(".")[2]: key for key in keys}
    nearest = nearest_option(word, keys_by_spelling, cutoff)
    return keys_by_spelling[nearest] if nearest else None


def _describe_flag(text: str) -> str:
    name, equals, value = text.lstrip("-").partition("=")
    shown = f"{name}={value}" if equals and not names_secret(name) else f"{name}=VALUE"
    return f"{text.partition('=')[0]}: there is no such option. A setting is written without dashes: {shown}."


def _describe_unreadable(text: str, error: HydraException) -> str:
    key, equals, _ = text.partition("=")
    if not equals:
        return f"{text}: a setting is written key=value."
    shown_text = f"{key}=***" if names_secret(key) else text
    reason = str(error).splitlines()[0]
    return f"{shown_text}: it cannot be read ({reason}). Put quotes around special characters: '{key}=\"VALUE\"'."


def _find_options(folders: list[Path]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for file in sorted(file for folder in folders for file in folder.glob("*/*.yaml")):
        options.setdefault(file.parent.name, []).append(file.stem)
    return options


def _find_types(section: type, prefix: str = "") -> dict[str, Any]:
    """The settings below a dataclass with their types, `adapter.r` -> int."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            types |= _find_types(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif name != "trainer":
            types[prefix + name] = kind
    return types


def _check_override(override: Override, grammar: Grammar) -> Iterator[str]:
    key = override.key_or_group
    unknown, takes_any_key = _describe_unknown(key, grammar), key.startswith(("trainer.", *OPEN))
    if override.is_delete():
        if unknown:
            yield f"~{key}: {unknown}"
        elif key in grammar.options:
            yield f"~{key}: a part cannot be left out. Choose {key}={'|'.join(grammar.options[key])}."
        elif not takes_any_key:
            yield f"~{key}: a setting cannot be left out. Give it a value: {key}=VALUE."
        return
    if override.value_type is ValueType.INTERVAL_SWEEP and not grammar.searched:
        hint = f"Add hydra/sweeper=optuna, or list values: {key}=A,B"
        yield f"{key}={override.get_value_string()}: an interval is for a search. {hint}."
        return
    kind = grammar.types.get(key)
    if kind is str and _is_text_in_pieces(override):
        yield f"{key}: its commas make several values of one text. Put quotes around it: {_quoted(override)}."
        return
    values = [] if override.value_type in UNLISTED else _list_values(override)
    if len(values) > 1 and not grammar.multirun:
        text = ",".join(text for text, _ in values)
        as_list = f", or write {key}=[{text}] for one list" if kind is Any or _takes_list(kind) else ""
        as_text = f", or put quotes around one text: {_quoted(override)}" if kind is str else ""
        yield f"{key}={text}: several values make a sweep. Add -m{as_list}{as_text}."
        return
    text = values[0][0] if values else "..."
    setting = f"{key}={'***' if names_secret(key) else text}"
    if unknown:
        yield f"{setting}: {unknown}"
    elif override.is_add() and not takes_any_key:
        yield f"+{setting}: it exists already. Write it without the plus."
    else:
        yield from filter(None, (_check_value(key, text, value, grammar) for text, value in values))
        yield from _check_texts(override, kind, [value for _, value in values])


def _is_text_in_pieces(override: Override) -> bool:
    """Whether commas with a space behind them have made several values of one text."""
    sweep = override.value() if override.is_choice_sweep() else None
    if not (isinstance(sweep, ChoiceSweep) and sweep.simple_form):
        return False
    has_quotes = any(isinstance(value, QuotedString) for value in sweep.list)
    return not has_quotes and re.search(r",\s", override.input_line or "") is not None


def _quoted(override: Override) -> str:
    """The override as a shell passes it on as one text."""
    key, _, text = (override.input_line or "").partition("=")
    inner = text.replace("\\", "").replace('"', '\\"').replace("'", "'\\''")
    return f"'{key}=\"{'***' if names_secret(key) else inner}\"'"


def _list_values(override: Override) -> list[tuple[str, Any]]:
    """Each value of an override, as it was written and as what YAML would make of it."""
    if not override.is_sweep_override():
        return [((override.input_line or "").partition("=")[2], override.value())]
    # private: hydra, its public iterator gives the values as they were written only
    return [(str(Transformer.str(value)), Override._convert_value(value)) for value in override.sweep_iterator()]


def _describe_unknown(key: str, grammar: Grammar) -> str | None:
    """Why there is no such key, and the one that was probably meant."""
    if key in grammar.options or key in grammar.types or key.startswith(OPEN):
        return None
    if names_secret(key) and key != "trainer.hub_token":
        return "a secret does not belong in a configuration. Set WANDB_API_KEY or HF_TOKEN in the environment."
    if key.startswith("trainer."):
        name, _, below = key.removeprefix("trainer.").partition(".")
        if name not in sft_fields():
            return unknown_trainer_field(name)
        return f"trainer.{name} has no parts." if below and "dict" not in sft_fields()[name].types else None
    if (suggestion := suggest_setting(key)) is not None:
        return f"there is no such setting. Did you mean {suggestion}?"
    section = key.partition(".")[0] + "."
    beside = [name.removeprefix(section) for name in grammar.types if name.startswith(section)]
    return f"there is no such setting. There are {', '.join(beside or [*grammar.options, 'seed', 'name'])}."


def _check_value(key: str, text: str, value: Any, grammar: Grammar) -> str | None:
    if key in grammar.options:
        options = grammar.options[key]
        if value in options or (value is None and key in OPTIONAL):
            return None
        if value is None:
            return f"{key}=null: a part cannot be left out. There are {', '.join(options)}."
        return f"{key}={text}: there is no such option.{_suggest_option(key, str(value), options)}"
    if isinstance(value, str) and "${" in value:
        return None  # known only once it is composed
    if key.startswith("trainer."):
        name = key.removeprefix("trainer.")
        return trainer_field_problem(name, value) if "." not in name else None
    if key.startswith("data.columns."):
        return None if isinstance(value, str) else f"{key}={text}: expected the name of a column."
    if key.startswith(OPEN):
        return None  # validate.py checks it
    return _check_type(key, text, value, grammar.types[key]) or limit_problem(key, value)


def _suggest_option(group: str, value: str, options: list[str]) -> str:
    """What was probably meant, and the list of all options; how a file, a folder or a name on the hub is given."""
    if group in ("model", "data"):
        path = Path(value)
        is_file = group == "data" and (path.is_file() or path.suffix)
        if is_file or value.startswith((".", "/", "~")) or (group == "model" and path.is_dir()):
            return f" Write {group}=local {group}.path={value}."
        if "/" in value:
            return f" Write {group}=hub {group}.path={value}."
    if meant := RENAMED_OPTIONS.get(group, {}).get(value.lower()):
        return f" Did you mean {group}={meant}? There are {', '.join(options)}."
    return suggest_and_list(value, options, f"{group}=")


def _check_type(key: str, text: str, value: Any, kind: Any) -> str | None:
    try:
        if kind is bool and not isinstance(value, bool):  # OmegaConf would take 2 for true
            raise ValidationError
        OmegaConf.update(OmegaConf.structured(Config), key, value)
    except OmegaConfBaseException:
        default = OmegaConf.select(OmegaConf.structured(Config), key)
        example = f", such as {default}" if type(default) in (int, float) else ""
        if _takes_list(kind):
            example = f", such as {key}=[{text}]"
        hint = did_you_mean(str(value), _choices(kind), f"{key}=")
        return f"{key}={text}: expected {_describe_type(kind)}{example}.{hint}"
    return None


def _check_texts(override: Override, kind: Any, values: list[Any]) -> Iterator[str]:
    """Numbers where text belongs, which would become another text: 1e3 becomes 1000.0."""
    given = override.input_line or ""
    takes_text = str in (kind, *get_args(kind)) or _takes_list(kind)
    if not takes_text or override.value_type is ValueType.RANGE_SWEEP:
        return
    written = re.split(r"[\s=,:()\[\]]+", given)
    for value in (item for group in values for item in (group if isinstance(group, list) else [group])):
        if isinstance(value, bool | int | float) and str(value) not in written:
            quotes = "Put quotes around what is to stay a text, and others for the shell"
            yield f"{given}: it reads as {value}. {quotes}: \"{override.key_or_group}='TEXT'\"."


def _takes_list(kind: Any) -> bool:
    return any(get_origin(member) is list for member in (kind, *get_args(kind)))


def _describe_type(kind: Any) -> str:
    """What a type takes, in words: `int | None` -> `an integer or null`."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_describe_type, get_args(kind)))
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}"
    return WORDS.get((get_origin(kind) or kind).__name__, "a value")


def _choices(kind: Any) -> list[str]:
    return [member.name for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
