"""What should be changed so that a run fits? Each remedy is tried on the plan before it is named."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config.schema import Quantization
from finetune.config.spelling import spell
from finetune.data.splits import load_splits
from finetune.errors import UserError
from finetune.machine.allowance import GIB, Fit
from finetune.planning.memory import MemoryNeed, estimate_memory
from finetune.planning.workload import PlannedRun, plan_prompts
from finetune.training.prepare import build_sft_config, checkpointing_name, prepare_run

Settings = dict[str, int | float | str]
"""Changed settings by their names on the command line."""

Change = tuple[list[Settings], str]
"""One way to change a run, the mildest degree of it first, and what it costs."""

SHORTEST_ROW = 32
# Of the memory that is left for a batch, the share that a smaller one is made to need.
BATCH_SHARE = 0.9


@dataclass(frozen=True)
class Remedy:
    """Settings that make a run fit, as on the command line, what they cost, and the peak that they lead to."""

    settings: str
    cost: str
    peak_bytes: int


def find_remedies(run: PlannedRun, need: MemoryNeed) -> Iterator[Remedy]:
    """What makes the run fit, the cheapest first; where nothing does alone, as many changes as it takes together."""
    free = _smaller_evaluation(run, need)
    together, costs, alone = dict(free), list[str](), False
    unchanged: list[Change] = [([{}], "nothing but time")] if free else []
    for options, cost in (*unchanged, *_changes(run)):
        attempts = (_try(run, need.held, free | settings, cost) for settings in options)
        if remedy := next(filter(None, attempts), None):
            alone = True
            yield remedy
        together |= options[-1]
        costs.append(cost)
        if alone or together == free | options[-1]:
            continue
        if remedy := _try(run, need.held, together, ", ".join(costs)):
            yield remedy
            return


def advise_remedies(remedies: list[Remedy]) -> str:
    """The remedies in a sentence."""
    if not remedies:
        return "No setting that the plan knows makes it fit: choose a smaller model or a larger device."
    advice = [f"{one.settings} (to {one.peak_bytes / GIB:.2f} GiB; costs {one.cost})" for one in remedies]
    return "What makes it fit, the cheapest first: " + "; ".join(advice) + "."


def _smaller_evaluation(run: PlannedRun, need: MemoryNeed) -> Settings:
    """Smaller batches for validation and answers where these do not fit: their results stay the same."""
    settings: Settings = {}
    if (share := _share(need, "validation")) < 1:
        rows = run.prepared.settings.per_device_eval_batch_size
        settings["trainer.per_device_eval_batch_size"] = max(1, int(rows * share))
    if (share := _share(need, "answers")) < 1:
        settings["eval.batch_size"] = max(1, int(need.answered_at_a_time * share))
    return settings


def _share(need: MemoryNeed, phase: str) -> float:
    """By how much what is alive in a phase must shrink; at least 1 where it fits."""
    if phase not in need.phases or need.bytes_of(phase) <= need.available:
        return 1.0
    alive = sum(need.phases[phase].get(part, 0) for part in ("activations", "logits"))
    return max(0.0, BATCH_SHARE * (need.available - need.bytes_of(phase) + alive) / alive)


def _changes(run: PlannedRun) -> Iterator[Change]:
    """The changes to training with what they cost, the cheapest first; each with its options, the mildest first."""
    config, settings = run.config, run.prepared.settings
    if not getattr(settings, name := checkpointing_name()):
        written = next((key for key in ("gradient_checkpointing", name) if key in config.trainer), name)
        yield [{f"trainer.{written}": True}], "about a third more time for training"
    batch, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if divisors := [2**i for i in range(1, batch.bit_length()) if batch % 2**i == 0]:
        smaller: list[Settings] = [
            {
                "trainer.per_device_train_batch_size": batch // divisor,
                "trainer.gradient_accumulation_steps": steps * divisor,
            }
            for divisor in divisors
        ]
        yield smaller, "some speed; the effective batch is the same"
    if config.adapter.enabled and not config.quantization.load_in_4bit:
        yield [{"quantization": "nf4"}], "a little accuracy of the base model"
    longest = max(map(len, run.prepared.rows.train["input_ids"]))
    if lengths := [longest // 2**i for i in range(1, longest.bit_length()) if longest // 2**i >= SHORTEST_ROW]:
        shorter: list[Settings] = [{"trainer.max_length": length, "data.max_cut_share": 1.0} for length in lengths]
        yield shorter, "what is cut off of long rows"


def _try(run: PlannedRun, held: int, settings: Settings, cost: str) -> Remedy | None:
    """The settings as a remedy, if the run fits with them."""
    try:
        changed = _change(run, settings)
    except UserError:  # with shorter rows, some have nothing left to learn
        return None
    if not len(changed.prepared.rows.train) or not len(changed.prepared.rows.validation):
        return None
    need = estimate_memory(changed, held)[2]
    written = " ".join(f"{key}={spell(value)}" for key, value in settings.items())
    return Remedy(written, cost, need.peak) if need.fit is not Fit.will_not_fit else None


def _change(run: PlannedRun, settings: Settings) -> PlannedRun:
    """The run with other settings; where its rows change, with its prompts chosen anew."""
    config, before = deepcopy(run.config), run.prepared.settings
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if key == "quantization":
            config.quantization = Quantization(load_in_4bit=True)
        elif section == "trainer":
            config.trainer[name] = value
        else:
            setattr(getattr(config, section), name, value)
    folder = Path(str(before.output_dir)).parent
    if "trainer.max_length" in settings:
        prepared = prepare_run(config, load_splits(config.data), run.machine, folder)
        return plan_prompts(config, prepared, run.machine)
    parameters = run.prepared.meta_model.num_parameters()
    prepared = replace(
        run.prepared, settings=build_sft_config(config.trainer, run.machine, folder, config.seed, parameters)
    )
    return replace(run, config=config, prepared=prepared, prompts=replace(run.prompts, decoding=config.eval))
