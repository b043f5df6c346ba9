"""How does a plan look in the terminal?"""

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from finetune.machine.allowance import Fit
from finetune.planning.memory import GIB, MemoryNeed
from finetune.planning.plan import RunPlan
from finetune.planning.remedies import advise_remedies
from finetune.reporting.console import RunConsole, format_duration
from finetune.runs.files import write_text

# The plans that this process has shown: the trials of a sweep.
shown: list["RunPlan"] = []
MORE_ROOM = (
    "A prediction may be off by as much as is left. What gives room, the cheapest first: trainer.gradient_checkpointing"
    "=true, a smaller trainer.per_device_train_batch_size with as many more trainer.gradient_accumulation_steps, "
    "quantization=nf4, a shorter trainer.max_length."
)


def show_plan(plan: RunPlan, screen: RunConsole) -> None:
    """Print the plan, and the sum over the plans before it; write it to `plan.json`."""
    work, need = plan.work, plan.need
    screen.say(
        f"  {work.steps:,} steps of {work.rows_per_step} rows: {work.samples:,} rows, {work.tokens:,} tokens, "
        f"{work.epochs:.3g} epochs"
    )
    screen.say(f"  attention: {plan.layout}")
    screen.say(_memory_table(need))
    style = {Fit.fits: "bold green", Fit.tight: "bold yellow", Fit.will_not_fit: "bold red"}[need.fit]
    screen.say(f"{need.fit.value}: {need.peak / GIB:.2f} GiB of {need.available / GIB:.2f} GiB", style=style)
    if need.fit is Fit.will_not_fit:
        screen.say(advise_remedies(plan.remedies))
    if need.fit is Fit.tight:
        screen.say(MORE_ROOM)
    parts = " · ".join(f"{name} {format_duration(seconds)}" for name, seconds in plan.seconds.items())
    screen.say(f"{format_duration(sum(plan.seconds.values()))} in all: {parts} ({plan.measured})")
    if work.answers:
        screen.say(
            f"The base model, without examples, is taken to use all {work.answers.new_tokens} tokens of an answer.",
            style="dim",
        )
    shown.append(plan)
    if len(shown) > 1:
        total = sum(sum(one.seconds.values()) for one in shown)
        screen.say(f"{len(shown)} trials so far: {format_duration(total)}", style="bold")
    write_text(screen.folder / "plan.json", json.dumps(_plain_plan(plan), indent=2) + "\n")


def _memory_table(need: MemoryNeed) -> Table:
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


def _plain_plan(plan: RunPlan) -> dict[str, Any]:
    work = plan.work
    return {
        "steps": work.steps,
        "epochs": work.epochs,
        "rows_per_step": work.rows_per_step,
        "samples": work.samples,
        "tokens": work.tokens,
        "memory": {"phases": plan.need.phases, "peak_bytes": plan.need.peak, "available_bytes": plan.need.available},
        "verdict": plan.need.fit.value,
        "remedies": [asdict(one) for one in plan.remedies],
        "seconds": {phase: round(seconds, 2) for phase, seconds in plan.seconds.items()},
        "measured": plan.measured,
    }
