"""What should be changed so that a run fits? Each remedy is tried on the plan before it is named."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.config.schema import Config, Quantization
from finetune.config.spelling import spell
from finetune.data.splits import load_splits
from finetune.errors import UserError
from finetune.machine.allowance import Fit
from finetune.machine.device import Device
from finetune.planning.memory import GIB, MemoryNeed, estimate_memory
from finetune.training.prepare import PreparedRun, prepare_run
from finetune.training.sft_config import build_sft_config, checkpointing_name

Settings = dict[str, Any]
"""Changed settings by their names on the command line."""

Change = tuple[list[Settings], str]
"""One way to change a run, the mildest degree of it first, and what it costs."""

SHORTEST_ROW = 32
# A batch is made somewhat smaller than would just fit.
MARGIN = 0.9


@dataclass(frozen=True)
class Remedy:
    """Settings that make a run fit, as on the command line, what they cost, and the peak that they lead to."""

    settings: str
    cost: str
    peak_bytes: int


def find_remedies(config: Config, prepared: PreparedRun, machine: Device, need: MemoryNeed) -> Iterator[Remedy]:
    """What makes the run fit, the cheapest first; where nothing does alone, as many changes as it takes together."""
    free = _smaller_evaluation(prepared, need)
    together, costs, found = dict(free), list[str](), False
    unchanged: Change = ([{}], "nothing but time")
    for options, cost in (unchanged, *_changes(config, prepared)):
        if not options or (not options[0] and not free):
            continue
        for settings in options:
            remedy = _try(config, prepared, machine, need.held, free | settings, cost)
            if remedy:
                found = True
                yield remedy
                break
        together |= options[-1]
        costs.append(cost)
        if not found and together != free | options[-1]:
            remedy = _try(config, prepared, machine, need.held, together, ", ".join(costs))
            if remedy:
                yield remedy
                return


def advise_remedies(remedies: list[Remedy]) -> str:
    """The remedies in a sentence."""
    if not remedies:
        return "No setting that the plan knows makes it fit: choose a smaller model or a larger device."
    told = [f"{one.settings} (to {one.peak_bytes / GIB:.2f} GiB; costs {one.cost})" for one in remedies]
    return "What makes it fit, the cheapest first: " + "; ".join(told) + "."


def _smaller_evaluation(prepared: PreparedRun, need: MemoryNeed) -> Settings:
    """Smaller batches for validation and answers where these do not fit: their results stay the same."""
    settings: Settings = {}
    rows = prepared.settings.per_device_eval_batch_size
    if (share := _share(need, "validation")) < 1:
        settings["trainer.per_device_eval_batch_size"] = max(1, int(rows * share))
    if (share := _share(need, "answers")) < 1:
        settings["eval.batch_size"] = max(1, int(need.answered_at_a_time * share))
    return settings


def _share(need: MemoryNeed, phase: str) -> float:
    """By how much what is alive in a phase must shrink; at least 1 where it fits."""
    if phase not in need.phases or need.bytes_of(phase) <= need.available:
        return 1.0
    alive = sum(need.phases[phase].get(part, 0) for part in ("activations", "logits"))
    return max(0.0, MARGIN * (need.available - need.bytes_of(phase) + alive) / alive)


def _changes(config: Config, prepared: PreparedRun) -> Iterator[Change]:
    """The changes to training with what they cost, the cheapest first; each with its options, the mildest first."""
    settings = prepared.settings
    if not getattr(settings, name := checkpointing_name()):
        written = next((known for known in ("gradient_checkpointing", name) if known in config.trainer), name)
        yield [{f"trainer.{written}": True}], "about a third more time for training"
    batch, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    halves = [2**i for i in range(1, batch.bit_length()) if batch % 2**i == 0]
    yield (
        [
            {
                "trainer.per_device_train_batch_size": batch // half,
                "trainer.gradient_accumulation_steps": steps * half,
            }
            for half in halves
        ],
        "some speed; the effective batch is the same",
    )
    if config.adapter.enabled and not config.quantization.load_in_4bit:
        yield [{"quantization": "nf4"}], "a little accuracy of the base model"
    longest = max(map(len, prepared.rows.train["input_ids"]))
    lengths = [longest // 2**i for i in range(1, longest.bit_length()) if longest // 2**i >= SHORTEST_ROW]
    yield (
        [{"trainer.max_length": length, "data.max_cut_share": 1.0} for length in lengths],
        "what is cut off of long rows",
    )


def _try(
    config: Config, prepared: PreparedRun, machine: Device, held: int, settings: Settings, cost: str
) -> Remedy | None:
    changed = deepcopy(config)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if key == "quantization":
            changed.quantization = Quantization(load_in_4bit=True)
        elif section == "trainer":
            changed.trainer[name] = value
        else:
            setattr(getattr(changed, section), name, value)
    try:
        again = _prepare(changed, prepared, machine)
    except UserError:  # with shorter rows, some have nothing left to learn
        return None
    if not len(again.rows.train) or not len(again.rows.validation):
        return None
    need = estimate_memory(changed, again, machine, held)[2]
    written = " ".join(f"{key}={spell(value)}" for key, value in settings.items())
    return Remedy(written, cost, need.peak) if need.fit is not Fit.will_not_fit else None


def _prepare(config: Config, prepared: PreparedRun, machine: Device) -> PreparedRun:
    folder = Path(str(prepared.settings.output_dir)).parent
    if config.trainer.get("max_length") != prepared.settings.max_length:
        return prepare_run(config, load_splits(config.data), machine, folder)
    parameters = prepared.outline.num_parameters()
    return replace(prepared, settings=build_sft_config(config.trainer, machine, folder, config.seed, parameters))
