"""Which settings does a search try? Hydra's sweep grammar as a space that Optuna draws from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from finetune.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial


GRAMMAR = "choice(4,8,16), range(4,33,4), interval(0.0,0.2), int(interval(1,8)) or tag(log,interval(1e-5,1e-3))"
GROUPS = ("data", "model", "quantization", "adapter", "trainer", "eval")


@dataclass(frozen=True)
class Dimension:
    """One searched setting: a choice of texts as on the command line, or a range of numbers."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    # Only searched where this other searched setting has this value.
    only_if: tuple[str, str] | None = None

    def suggest(self, trial: "Trial") -> Any:
        """A value for the trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def place(self, value: Any) -> Any:
        """A setting's value as this dimension holds it; None if it lies outside."""
        if self.choices:
            return next((choice for choice in self.choices if _same(choice, value)), None)
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return (int(value) if self.whole else float(value)) if inside else None

    def extremes(self) -> Sequence[Any]:
        """The values that a check of the whole space has to look at."""
        whole = int if self.whole else float
        return self.choices or [whole(self.low), whole(self.high)]


@dataclass(frozen=True)
class Space:
    """The searched settings, those that depend on another after it."""

    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: "Trial") -> dict[str, Any]:
        """A value for each setting that applies."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _applies(dimension, found):
                found[dimension.key] = dimension.suggest(trial)
        return found

    def defaults(self, value: Callable[[str], Any]) -> dict[str, Any]:
        """The defaults as a trial: `value(key)` is what a setting is without the search.

        One that lies outside the space (`outside`) is left for the sampler to choose.
        """
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            place = dimension.place(value(dimension.key)) if _applies(dimension, found) else None
            if place is not None:
                found[dimension.key] = place
        return found

    def outside(self, value: Callable[[str], Any]) -> dict[str, Any]:
        """The defaults that the search cannot try, for they lie outside the space."""
        inside = self.defaults(value)
        keys = [one.key for one in self.dimensions if _applies(one, inside) and one.key not in inside]
        return {key: value(key) for key in keys}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every choice and every end of a range, each once, the others at their first."""
        first = {dimension.key: dimension.extremes()[0] for dimension in self.dimensions}
        for dimension in self.dimensions:
            for value in dimension.extremes():
                yield self._applying(first | _condition(dimension) | {dimension.key: value})

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination. Raises UserError where there is no end of them."""
        for dimension in self.dimensions:
            if not dimension.choices:
                raise UserError(
                    f"hydra.sweeper.sampler=grid: {dimension.key} is an interval; give choice(...) or range(...)."
                )
        seen = []
        for cell in product(*(dimension.choices for dimension in self.dimensions)):
            point = self._applying(dict(zip((d.key for d in self.dimensions), cell, strict=True)))
            if point not in seen:
                seen.append(point)
                yield point

    def _applying(self, point: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _applies(dimension, found):
                found[dimension.key] = point[dimension.key]
        return found


def read_space(params: Mapping[str, Any], given: Sequence[Override], conditions: Mapping[str, str]) -> Space:
    """The space of a preset's `params` and of the command line's sweeps, which replace a preset's.

    Raises UserError for what is no sweep, and for a condition on a setting that is not searched.
    """
    texts = [f"{key}={value}" for key, value in params.items()]
    searched = {one.key_or_group: one for one in OverridesParser.create().parse_overrides(texts)}
    searched |= {override.key_or_group: override for override in given}
    for key, condition in conditions.items():
        other = condition.partition("=")[0]
        if key not in searched or other not in searched or other in conditions:
            raise UserError(
                f"hydra.sweeper.conditions: {key}: {condition}. Expected SETTING: OTHER=VALUE, where both settings are "
                f"searched and OTHER has no condition itself; searched are {', '.join(searched)}."
            )
    free = [_dimension(key, one, None) for key, one in searched.items() if key not in conditions]
    bound = [_dimension(key, searched[key], _pair(text)) for key, text in conditions.items()]
    return Space((*free, *bound))


def point_overrides(point: Mapping[str, Any]) -> list[str]:
    """A point of the space as on the command line."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in point.items()]


def experiment_yaml(texts: Sequence[str]) -> str:
    """Overrides as a config file has them: the defaults list of the chosen options, and then the settings."""
    options: list[dict[str, Any]] = []
    tree: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(texts)):
        *parents, last = override.key_or_group.split(".")
        if not parents and last in GROUPS:
            options.append({f"override /{last}": override.value()})
            continue
        place: dict[str, Any] = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = override.value()
    parts: list[dict[str, Any]] = [{"defaults": options} if options else {}, tree]
    return "".join(OmegaConf.to_yaml(OmegaConf.create(part)) for part in parts if part)


def _dimension(key: str, override: Override, only_if: tuple[str, str] | None) -> Dimension:
    value = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        assert value.start is not None and value.end is not None
        low, high, log = float(value.start), float(value.end), "log" in value.tags
        if low >= high or (log and low <= 0):
            text = f"{key}={override.get_value_string()}"
            raise UserError(f"{text}: expected a lower and a higher number, both above 0 for log.")
        return Dimension(key, (), low, high, whole, log, only_if)
    if not override.is_sweep_override():
        raise UserError(f"{key}={override.get_value_string()}: it is no range to search. Write {GRAMMAR}.")
    if isinstance(value, RangeSweep) and not override.is_discrete_sweep():
        raise UserError(f"{key}={override.get_value_string()}: the range has no end. Write {GRAMMAR}.")
    return Dimension(key, tuple(dict.fromkeys(override.sweep_string_iterator())), only_if=only_if)


def _applies(dimension: Dimension, found: Mapping[str, Any]) -> bool:
    return dimension.only_if is None or _same(str(found.get(dimension.only_if[0])), dimension.only_if[1])


def _condition(dimension: Dimension) -> dict[str, str]:
    return dict([dimension.only_if]) if dimension.only_if else {}


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _same(text: str, value: Any) -> bool:
    """Whether a text of the command line stands for the value."""
    try:
        return float(text) == float(value) if not isinstance(value, bool) else text.lower() == str(value).lower()
    except (TypeError, ValueError):
        return text.replace(" ", "").strip("'\"") == str(value).replace(" ", "").replace("'", "").replace('"', "")
