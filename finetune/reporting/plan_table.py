"""How does a plan look in the terminal?"""

import json
from dataclasses import asdict

from finetune.machine.allowance import GIB, Fit
from finetune.planning.memory import MemoryNeed
from finetune.planning.plan import RunPlan
from finetune.planning.remedies import advise_remedies
from finetune.reporting.console import RunConsole
from finetune.reporting.tables import Table, format_duration, to_rich
from finetune.runs.files import write_text

MORE_ROOM = (
    "A prediction may be off by as much as is left. What gives room, the cheapest first: trainer.gradient_checkpointing"
    "=true, a smaller trainer.per_device_train_batch_size with as many more trainer.gradient_accumulation_steps, "
    "quantization=nf4, a shorter trainer.max_length."
)


def show_plan(plan: RunPlan, console: RunConsole) -> None:
    """Print the plan and write it to `plan.json`."""
    workload, need = plan.workload, plan.need
    console.print(
        f"  {workload.steps:,} steps of {workload.rows_per_step} rows: {workload.samples:,} rows, "
        f"{workload.tokens:,} tokens, {workload.epochs:.3g} epochs"
    )
    console.print(f"  attention: {plan.layout}")
    console.print(to_rich(_memory_table(need)))
    style = {Fit.fits: "bold green", Fit.tight: "bold yellow", Fit.will_not_fit: "bold red"}[need.fit]
    console.print(f"{need.fit.value}: {need.peak / GIB:.2f} GiB of {need.available / GIB:.2f} GiB", style=style)
    if need.fit is Fit.will_not_fit:
        console.print(advise_remedies(plan.remedies))
    if need.fit is Fit.tight:
        console.print(MORE_ROOM)
    parts = " · ".join(f"{name} {format_duration(seconds)}" for name, seconds in plan.seconds.items())
    console.print(f"{format_duration(sum(plan.seconds.values()))} in all: {parts} ({plan.measured})")
    if workload.answers:
        taken = f"is taken to use all {workload.answers.new_tokens} tokens of an answer"
        console.print(f"The base model, without examples, {taken}.", style="dim")
    if workload.candidates:
        console.print(f"To find the best prompt and answer with it takes {workload.candidate_answers:,} answers.")
    plain = {
        **{name: getattr(workload, name) for name in ("steps", "epochs", "rows_per_step", "samples", "tokens")},
        "memory": {"phases": need.phases, "peak_bytes": need.peak, "available_bytes": need.available},
        "verdict": need.fit.value,
        "remedies": [asdict(remedy) for remedy in plan.remedies],
        "seconds": {phase: round(seconds, 2) for phase, seconds in plan.seconds.items()},
        "measured": plan.measured,
    }
    write_text(console.folder / "plan.json", json.dumps(plain, indent=2) + "\n")


def _memory_table(need: MemoryNeed) -> Table:
    """A row for each part, a column for each phase, in GiB; the phase that needs most is bold."""
    parts = dict.fromkeys(part for sizes in need.phases.values() for part in sizes)
    table = {part: [sizes.get(part, 0) for sizes in need.phases.values()] for part in parts}
    rows = [[part, *(f"{n / GIB:.3f}" if n else "" for n in sizes)] for part, sizes in table.items() if any(sizes)]
    rows.append(["together", *(f"{need.bytes_of(phase) / GIB:.3f}" for phase in need.phases)])
    return Table("Memory in GiB", ["", *need.phases], rows, bold_rows=[len(rows) - 1], bold_column=need.peak_phase)
