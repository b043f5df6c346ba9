"""Will a run fit, and how long will it take? Said before the model is loaded, with what to change if it will not."""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from finetune.config.schema import Config, UserError
from finetune.evaluation import forgetting as retention
from finetune.evaluation import generate
from finetune.machine.device import Device
from finetune.planning import memory
from finetune.planning import remedies as remedy
from finetune.planning import throughput as pace
from finetune.planning.memory import GIB, Need
from finetune.planning.remedies import Remedy
from finetune.planning.throughput import Pace
from finetune.planning.workload import Work
from finetune.reporting.console import Screen, clock
from finetune.runs import folder as checkpoint
from finetune.training.prepare import Prepared

# Whether this process's run is known to fit, because its sweep was planned.
known_to_fit = False

# The plans that this process has shown: the trials of a sweep.
shown: list["Plan"] = []


MORE_ROOM = (
    "A prediction may be off by as much as is left. What gives room, the cheapest first: trainer.gradient_checkpointing"
    "=true, a smaller trainer.per_device_train_batch_size with as many more trainer.gradient_accumulation_steps, "
    "quantization=nf4, a shorter trainer.max_length."
)


@dataclass(frozen=True)
class Plan:
    """What a run does, needs and takes."""

    work: Work
    layout: str
    need: Need
    # By phase, under the names of result.json.
    seconds: dict[str, float]
    measured: str
    remedies: list[Remedy]


def make(config: Config, prepared: Prepared, machine: Device, prepare_seconds: float) -> Plan:
    """The plan of a run; where it will not fit, with remedies, the cheapest first."""
    started = time.perf_counter()
    trainer, work, need = memory.estimate(config, prepared, machine)
    prepare_seconds += time.perf_counter() - started  # the run does so too
    remedies = list(remedy.find(config, prepared, machine, need)) if need.verdict == "will not fit" else []
    if config.plan.tflops:
        speed, measured = (
            pace.state(prepared, work, config.plan.tflops * 1e12),
            f"{config.plan.tflops:g} TFLOP/s, as stated",
        )
    else:
        speed, measured = pace.measure(config, prepared, machine, work, need.unpacks)
    return Plan(work, trainer.layout, need, {"prepare": prepare_seconds, **seconds(work, speed)}, measured, remedies)


def require_room(config: Config, prepared: Prepared, machine: Device) -> None:
    """Raise UserError, with what to change, for a run whose peak is predicted above the memory that there is."""
    if config.force or known_to_fit:
        return
    _, _, need = memory.estimate(config, prepared, machine)
    if need.verdict == "will not fit":
        remedies = list(remedy.find(config, prepared, machine, need))
        raise UserError(
            f"This run will not fit: it needs about {need.peak / GIB:.2f} GiB ({need.peak_phase}), and there are "
            f"{need.available / GIB:.2f} GiB. {remedy.advise(remedies)} force=true runs it all the same."
        )


def show(plan: Plan, screen: Screen) -> None:
    """Print the plan, and the sum over the plans before it; write it to `plan.json`."""
    work, need = plan.work, plan.need
    screen.say(
        f"  {work.steps:,} steps of {work.rows_per_step} rows: {work.samples:,} rows, {work.tokens:,} tokens, "
        f"{work.epochs:.3g} epochs"
    )
    screen.say(f"  attention: {plan.layout}")
    screen.say(_memory_table(need))
    style = {"fits": "bold green", "tight": "bold yellow", "will not fit": "bold red"}[need.verdict]
    screen.say(f"{need.verdict}: {need.peak / GIB:.2f} GiB of {need.available / GIB:.2f} GiB", style=style)
    if need.verdict == "will not fit":
        screen.say(remedy.advise(plan.remedies))
    if need.verdict == "tight":
        screen.say(MORE_ROOM)
    parts = " · ".join(f"{name} {clock(seconds)}" for name, seconds in plan.seconds.items())
    screen.say(f"{clock(sum(plan.seconds.values()))} in all: {parts} ({plan.measured})")
    if work.answers:
        screen.say(
            f"The base model, without examples, is taken to use all {work.answers.new_tokens} tokens of an answer.",
            style="dim",
        )
    shown.append(plan)
    if len(shown) > 1:
        total = sum(sum(one.seconds.values()) for one in shown)
        screen.say(f"{len(shown)} trials so far: {clock(total)}", style="bold")
    checkpoint.write(screen.folder / "plan.json", json.dumps(_plain(plan), indent=2) + "\n")


def seconds(work: Work, speed: Pace) -> dict[str, float]:
    """Seconds by phase; the base's answers are taken to be as long as they may be, the tuned model's as references."""
    training = work.cells * speed.train_cell + work.steps * speed.update
    validation = work.validations * work.validation_cells * speed.forward_cell
    answers, asked = work.answers, 0.0
    if answers:
        asked = _decoding([answers.new_tokens] * len(answers.prompts), speed) * speed.untuned
        asked += _decoding(answers.references, speed)
        asked += 2 * speed.prefill * len(answers.prompts) / answers.batch_size
    with_examples = replace(speed, decode_step=speed.few_step, decode_row=speed.few_row)
    for draw in work.few_shot:
        asked += _decoding(draw.references, with_examples) * speed.untuned
        asked += speed.few_prefill * len(draw.prompts) / draw.batch_size
    general = _decoding([retention.ANSWER_TOKENS] * work.questions, speed) if work.questions else 0.0
    asked += 2 * (general + work.passages * speed.forward_cell)
    return {"load": speed.load, "train": training + validation, "evaluate": asked}


def _decoding(lengths: list[int], speed: Pace) -> float:
    """Seconds to generate answers of these lengths; those that have ended leave every `generate.ROUND` tokens."""
    alive = [sum(length > token for length in lengths) for token in range(0, max(lengths), generate.ROUND)]
    return sum(generate.ROUND * (speed.decode_step + rows * speed.decode_row) for rows in alive)


def _memory_table(need: Need) -> Table:
    """A row for each part, a column for each phase, in GiB; the phase that needs most is bold."""
    table = Table(title="Memory in GiB", title_justify="left")
    table.add_column("")
    for phase in need.phases:
        table.add_column(phase, justify="right", style="bold" if phase == need.peak_phase else "")
    for part in dict.fromkeys(part for parts in need.phases.values() for part in parts):
        sizes = [parts.get(part, 0) for parts in need.phases.values()]
        if any(sizes):
            table.add_row(part, *(f"{size / GIB:.3f}" if size else "" for size in sizes))
    table.add_row("together", *(f"{need.bytes_of(phase) / GIB:.3f}" for phase in need.phases), style="bold")
    return table


def _plain(plan: Plan) -> dict[str, Any]:
    work = plan.work
    return {
        "steps": work.steps,
        "epochs": work.epochs,
        "rows_per_step": work.rows_per_step,
        "samples": work.samples,
        "tokens": work.tokens,
        "memory": {"phases": plan.need.phases, "peak_bytes": plan.need.peak, "available_bytes": plan.need.available},
        "verdict": plan.need.verdict,
        "remedies": [asdict(one) for one in plan.remedies],
        "seconds": {phase: round(seconds, 2) for phase, seconds in plan.seconds.items()},
        "measured": plan.measured,
    }
