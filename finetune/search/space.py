"""Which settings does a search try? Hydra's sweep grammar as a space that Optuna draws from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import isfinite

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from finetune.config.schema import Config
from finetune.errors import UserError

GRAMMAR = "choice(4,8,16), range(4,33,4), interval(0.0,0.2), int(interval(1,8)) or tag(log,interval(1e-5,1e-3))"
GROUPS = ("data", "model", "quantization", "adapter", "trainer", "eval")

Value = str | int | float
Point = dict[str, Value]  # of settings
Default = Callable[[str], object]  # from a setting to its value where nothing is searched


@dataclass(frozen=True)
class Dimension:
    """One searched setting: a choice of texts as on the command line, or a range of numbers."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    only_if: Mapping[str, str] = field(default_factory=dict)  # searched only where another setting has this value

    def applies(self, point: Point) -> bool:
        """Whether it is searched beside these values of the settings before it."""
        return all(_stands_for(str(point.get(key)), value) for key, value in self.only_if.items())

    def match(self, value: object) -> Value | None:
        """A setting's value as this dimension holds it; None if it lies outside."""
        if self.choices:
            return next((choice for choice in self.choices if _stands_for(choice, value)), None)
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        return int(value) if self.whole else float(value)

    def boundary_values(self) -> Sequence[Value]:
        """The values that a check of the whole space has to look at."""
        return self.choices or [int(end) if self.whole else end for end in (self.low, self.high)]


@dataclass(frozen=True)
class Space:
    """The searched settings, those that depend on another after it."""

    dimensions: tuple[Dimension, ...]

    def point(self, choose: Callable[[Dimension], Value | None]) -> Point:
        """What is chosen for each setting that applies; None leaves it out."""
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.applies(point) and (value := choose(dimension)) is not None:
                point[dimension.key] = value
        return point

    def defaults(self, default: Default) -> Point:
        """The defaults as a trial; one that lies outside the space is left for the sampler to choose."""
        return self.point(lambda dimension: dimension.match(default(dimension.key)))

    def defaults_outside(self, default: Default) -> dict[str, object]:
        """The defaults that the search cannot try, for they lie outside the space."""
        inside = self.defaults(default)
        return {one.key: default(one.key) for one in self.dimensions if one.applies(inside) and one.key not in inside}

    def boundary_points(self) -> Iterator[Point]:
        """Every choice and every end of a range, each once, the others at their first."""
        first = {dimension.key: dimension.boundary_values()[0] for dimension in self.dimensions}
        for dimension in self.dimensions:
            for value in dimension.boundary_values():
                yield self._applying({**first, **dimension.only_if, dimension.key: value})

    def grid(self) -> list[Point]:
        """Every combination. Raises UserError where there is no end of them."""
        if interval := next((dimension.key for dimension in self.dimensions if not dimension.choices), None):
            raise UserError(f"hydra.sweeper.sampler=grid: {interval} is an interval; give choice(...) or range(...).")
        cells = product(*([(dimension.key, choice) for choice in dimension.choices] for dimension in self.dimensions))
        points = (self._applying(dict(cell)) for cell in cells)
        return [dict(items) for items in dict.fromkeys(tuple(point.items()) for point in points)]

    def _applying(self, values: Mapping[str, Value]) -> Point:
        return self.point(lambda dimension: values[dimension.key])


def read_space(params: Mapping[str, object], arguments: Sequence[str], conditions: Mapping[str, str]) -> Space:
    """The space of a preset's `params` and of a command's sweeps, which replace those; UserError for what is none."""
    swept = [override for override in _parse(arguments) if override.is_sweep_override()]
    preset = _parse([f"{key}={value}" for key, value in params.items()])
    searched = {override.key_or_group: override for override in [*preset, *swept]}
    only_if: dict[str, dict[str, str]] = {}
    for key, condition in conditions.items():
        other, _, value = condition.partition("=")
        if key not in searched or other not in searched or other in conditions:
            raise UserError(
                f"hydra.sweeper.conditions: {key}: {condition}. Expected SETTING: OTHER=VALUE, where both settings are "
                f"searched and OTHER has no condition itself; searched are {', '.join(searched)}."
            )
        only_if[key] = {other: value}
    keys = [*(key for key in searched if key not in only_if), *only_if]
    return Space(tuple(_read_dimension(key, searched[key], only_if.get(key, {})) for key in keys))


def fixed_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are no sweeps, and so are of every trial."""
    return [str(override.input_line) for override in _parse(arguments) if not override.is_sweep_override()]


def point_overrides(point: Mapping[str, object]) -> list[str]:
    """A point of the space as on the command line."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in point.items()]


def default_values(config: Config, options: Mapping[str, str]) -> Default:
    """Of a group the option that is chosen, of a setting its value, in the configuration without the search."""
    settings = OmegaConf.structured(config)
    return lambda key: options.get(key) or OmegaConf.select(settings, key)


def experiment_yaml(overrides: Sequence[str]) -> str:
    """Overrides as a config file has them: the defaults list of the chosen options, and then the settings."""
    options, settings = [], OmegaConf.create()
    for override in _parse(overrides):
        if override.key_or_group in GROUPS:
            options.append({f"override /{override.key_or_group}": override.value()})
        else:
            OmegaConf.update(settings, override.key_or_group, override.value())
    parts = ({"defaults": options} if options else {}, settings)
    return "".join(OmegaConf.to_yaml(part) for part in parts if part)


def _parse(texts: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


def _read_dimension(key: str, override: Override, only_if: Mapping[str, str]) -> Dimension:
    value, text = override.value(), f"{key}={override.get_value_string()}"
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        low, high, log = float(value.start), float(value.end), "log" in value.tags
        if low >= high or (log and low <= 0):
            raise UserError(f"{text}: expected a lower and a higher number, both above 0 for log.")
        return Dimension(key, (), low, high, whole, log, only_if)
    if not override.is_sweep_override():
        raise UserError(f"{text}: it is no range to search. Write {GRAMMAR}.")
    if isinstance(value, RangeSweep) and value.stop is not None and not isfinite(value.stop):
        raise UserError(f"{text}: the range has no end. Write {GRAMMAR}.")
    return Dimension(key, tuple(dict.fromkeys(override.sweep_string_iterator())), only_if=only_if)


def _stands_for(text: str, value: object) -> bool:
    """Whether a text of the command line stands for the value."""
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    try:
        return float(text) == float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return text.replace(" ", "").strip("'\"") == str(value).translate(str.maketrans("", "", " '\""))
