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

Settings = dict[str, int | float | str]  # changed ones, by their names on the command line
Change = tuple[list[Settings], str]  # one way to change a run, the mildest degree of it first, and what it costs
SHORTEST_ROW = 32
BATCH_SHARE = 0.9  # of the memory that is left for a batch: what a smaller one is made to need


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
        several = together != free | options[-1]
        if several and not alone and (remedy := _try(run, need.held, together, ", ".join(costs))):
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
    for phase, name, rows in (
        ("validation", "trainer.per_device_eval_batch_size", run.prepared.settings.per_device_eval_batch_size),
        ("answers", "eval.batch_size", need.answered_at_a_time),
    ):
        if phase in need.phases and (excess := need.bytes_of(phase) - need.available) > 0:
            alive = sum(need.phases[phase].get(part, 0) for part in ("activations", "logits"))
            settings[name] = max(1, int(rows * (BATCH_SHARE * (alive - excess) / alive)))
    return settings


def _changes(run: PlannedRun) -> Iterator[Change]:
    """The changes to training with what they cost, the cheapest first; each with its options, the mildest first."""
    config, settings = run.config, run.prepared.settings
    if not getattr(settings, name := checkpointing_name()):
        written = next((key for key in ("gradient_checkpointing", name) if key in config.trainer), name)
        yield [{f"trainer.{written}": True}], "about a third more time for training"
    batch, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    rows, accumulated = "trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"
    if divisors := [2**i for i in range(1, batch.bit_length()) if batch % 2**i == 0]:
        smaller: list[Settings] = [{rows: batch // divisor, accumulated: steps * divisor} for divisor in divisors]
        yield smaller, "some speed; the effective batch is the same"
    if config.adapter.enabled and not config.quantization.load_in_4bit:
        yield [{"quantization": "nf4"}], "a little accuracy of the base model"
    longest = max(map(len, run.prepared.rows.train["input_ids"]))
    if lengths := [longest // 2**i for i in range(1, longest.bit_length()) if longest // 2**i >= SHORTEST_ROW]:
        yield [{"trainer.max_length": n, "data.max_cut_share": 1.0} for n in lengths], "what is cut off of long rows"


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
    config = deepcopy(run.config)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if key == "quantization":
            config.quantization = Quantization(load_in_4bit=True)
        elif section == "trainer":
            config.trainer[name] = value
        else:
            setattr(getattr(config, section), name, value)
    folder = Path(str(run.prepared.settings.output_dir)).parent
    if "trainer.max_length" in settings:
        prepared = prepare_run(config, load_splits(config.data), run.machine, folder)
        return plan_prompts(config, prepared, run.machine)
    parameters = run.prepared.meta_model.num_parameters()
    sft_config = build_sft_config(config.trainer, run.machine, folder, config.seed, parameters)
    prepared, prompts = replace(run.prepared, settings=sft_config), replace(run.prompts, decoding=config.eval)
    return replace(run, config=config, prepared=prepared, prompts=prompts)
