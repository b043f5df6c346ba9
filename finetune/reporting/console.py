"""What does the user see while a run goes on, and at its end?"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.evaluation.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from finetune.data.splits import Message
    from finetune.evaluation.answers import Arm
    from finetune.machine.device import Device
    from finetune.training.prepare import PreparedRun


EXAMPLES_SHOWN = 3


class RunConsole:
    """The terminal and the run's log.txt; both silent in every process but the first."""

    def __init__(self, folder: Path, speaks: bool) -> None:
        self.terminal = Console(quiet=not speaks, highlight=False)
        self.folder = folder
        self.logs = speaks

    def say(self, what: RenderableType, style: str = "") -> None:
        """Print on the terminal and into the log."""
        _print(self.terminal, what, style)
        if self.logs:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                _print(Console(file=file, width=140, highlight=False), what, style)

    def show_start(self, machine: "Device", checkpoint: Path | None) -> None:
        """The run's folder, whether it continues, and what was chosen for this machine."""
        self.say(str(self.folder), style="bold")
        if checkpoint:
            self.say(f"  continues from {checkpoint.name}")
        processes = f"{machine.processes} processes, each on " if machine.processes > 1 else ""
        computes = str(machine.compute_dtype).removeprefix("torch.")
        weights = str(machine.weight_dtype).removeprefix("torch.")
        spare = f"; {machine.spare_gpus} more here, which accelerate launch uses" if machine.spare_gpus else ""
        self.say(f"  device: {processes}{machine.name}{spare}")
        self.say(f"  precision: {computes}, unquantised weights {weights} ({machine.why})")

    def show_data(self, prepared: "PreparedRun") -> None:
        """What was read and what became of it, by split."""
        counts = [f"{value:,} {name}" for name, value in prepared.splits.counts.items() if value]
        self.say("  data: " + " · ".join(counts))
        for message in prepared.splits.bad:
            self.say(f"  left out: {message}", style="yellow")
        for message in prepared.splits.shared:
            self.say(f"  shared: {message}", style="yellow")
        for name, size in prepared.rows.sizes.items():
            self.say(f"  {name}: {size.rows:,} rows, {size.tokens:,} tokens, {size.loss_tokens:,} with loss")
            if size.truncated:
                lost = f", and {size.dropped:,} of them left out: no loss is left" if size.dropped else ""
                self.say(f"  {name}: {size.truncated:,} rows are cut at trainer.max_length{lost}", style="yellow")
        for note in prepared.notes:
            self.say(f"  note: {note}", style="yellow")
        cut = any(size.truncated for size in prepared.rows.sizes.values())
        rows = "every row that is not cut" if cut else "every row"
        self.say(f"  checked: {rows} has loss, ends with an end token that is learnt, and begins as generation will")

    def show_arm(self, name: str, arm: "Arm") -> None:
        """How many answers an arm gave, and in what time or whence."""
        count = sum(map(len, arm.replies))
        how = "as an earlier run of this base model answered" if arm.reused else f"answered in {arm.seconds:.0f} s"
        self.say(f"  {name.replace('_', '-')}: {count} prompts {how}")

    def show_result(self, result: dict[str, Any]) -> None:
        """The verdict, the table of all arms, example answers, the run's cost, and what to do next."""
        outcome = result["evaluation"]
        if outcome["verdict"] is None:
            found = format_interval(outcome["arms"]["tuned"][outcome["metric"]])
            self.say(f"{outcome['metric']} {found} on {outcome['prompts']} {outcome['split']} prompts", style="bold")
            return
        self.say(score_table(outcome))
        self.say(outcome["verdict"]["sentence"], style="bold")
        if outcome["retention"] and not outcome["retention"]["forgot"]:
            self.say(f"{outcome['retention']['sentence']}.")
        if outcome.get("harness"):
            self.say(harness_table(outcome["harness"]))
        for row in _read_examples(self.folder):
            self.say(_example_table(row, outcome))
        self._warn_of_cut_answers(outcome)
        training = result["training"]
        since = " since it was continued" if training["resumed_from_step"] else " in all"
        self.say(
            f"Trained {training['steps']} steps, {training['tokens']:,} tokens at "
            f"{training['tokens_per_second']:,.0f} tokens/s; {sum(result['seconds'].values()):.0f} s{since}; "
            f"peak memory {training['peak_memory_bytes'] / 2**30:.1f} GiB."
        )
        saved = "adapter" if result["config"]["adapter"]["enabled"] else "model"
        self.say(f"In {self.folder}: report.html, {saved}/, predictions.jsonl, result.json, config.yaml, log.txt")
        self.say("Next: change a setting (adapter.r=32), try several (-m adapter.r=8,32), or see --help.")

    def _warn_of_cut_answers(self, outcome: dict[str, Any]) -> None:
        cut = {format_arm(arm, outcome): found["unfinished_answers"] for arm, found in outcome["arms"].items()}
        if any(cut.values()):
            counts = ", ".join(f"{count} of {name}" for name, count in cut.items() if count)
            limit = outcome["max_new_tokens"]
            self.say(f"Answers cut off at eval.max_new_tokens={limit}: {counts}.", style="yellow")


def show_complete_run(result: dict[str, Any], folder: Path) -> None:
    """Show a run that was finished earlier."""
    screen = RunConsole(folder, speaks=os.environ.get("RANK", "0") == "0")
    screen.logs = False
    screen.say(f"{folder} is complete: nothing to do.", style="bold")
    screen.show_result(result)


def score_table(outcome: dict[str, Any]) -> Table:
    """Each metric's mean with its interval by arm, the headline in bold, and tuned minus the best way of prompting."""
    against = outcome["verdict"]["against"]
    table = Table(title=f"{outcome['prompts']} held-out {outcome['split']} prompts", title_justify="left")
    table.add_column("metric")
    for name in outcome["arms"]:
        table.add_column(format_arm(name, outcome), justify="right")
    table.add_column(f"tuned - {format_arm(against, outcome)}", justify="right")
    for metric, apart in outcome["differences"][against].items():
        cells = [format_interval(arm[metric]) for arm in outcome["arms"].values()]
        style = "bold" if metric == outcome["metric"] else ""
        name = metric if HIGHER_IS_BETTER[metric] else f"{metric} (less is better)"
        table.add_row(name, *cells, format_interval(apart, "+"), style=style)
    return table


def harness_table(outcome: dict[str, Any]) -> Table:
    """Each metric of each task of lm-evaluation-harness, before and after, with its standard error."""
    table = Table("task", "metric", title="lm-evaluation-harness", title_justify="left")
    for arm in ("base", "tuned"):
        table.add_column(arm, justify="right")
    for row in harness_rows(outcome):
        table.add_row(*row)
    return table


def harness_rows(outcome: dict[str, Any]) -> Iterator[list[str]]:
    """Task, metric, and the values of base and tuned model: `0.417 ± 0.021`; what nobody knows is `?`."""
    for task, metrics in outcome.items():
        for metric, found in metrics.items():
            pairs = ((found[arm], found[f"{arm}_stderr"]) for arm in ("base", "tuned"))
            cells = (" ± ".join("?" if number is None else f"{number:.3f}" for number in pair) for pair in pairs)
            yield [task, metric, *cells]


def format_arm(arm: str, outcome: dict[str, Any]) -> str:
    """An arm as users call it: `3-shot` for `few_shot`."""
    shots = len(outcome["shots"][0]) if outcome["shots"] else 0
    return arm.replace("few_shot", f"{shots}-shot").replace("_", " ").replace("zero shot", "zero-shot")


def format_interval(found: dict[str, Any], sign: str = "") -> str:
    """A value and the ends of its interval: `0.417 [0.35, 0.48]`; an end that nobody knows is `?`."""
    low, high = (f"{end:{sign}.2f}" if end is not None else "?" for end in (found["low"], found["high"]))
    return f"{found['mean']:{sign}.3f} [{low}, {high}]"


def _read_examples(folder: Path) -> list[dict[str, Any]]:
    with (folder / "predictions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(EXAMPLES_SHOWN), strict=False)]
    return [row for row in rows if "answer" in row["tuned"]]


def _example_table(row: dict[str, Any], outcome: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    lines = {"prompt": _last_message(row["prompt"]), "reference": row["reference"]}
    lines |= {format_arm(arm, outcome): first_answer(row[arm]) for arm in outcome["arms"]}
    for name, text in lines.items():
        table.add_row(name, Text(_shorten(text)))
    table.add_row("", "")
    return table


def first_answer(arm: dict[str, Any]) -> str:
    """The answer of an arm's first draw, from a row of predictions.jsonl; empty where none was asked for."""
    return str(arm.get("draws", [arm])[0].get("answer", ""))


def _last_message(prompt: "list[Message]") -> str:
    return prompt[-1]["content"] if prompt else ""


def _shorten(text: str, limit: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _print(console: Console, what: RenderableType, style: str) -> None:
    console.print(what, style=style, markup=False, soft_wrap=isinstance(what, str))


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 5 min`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if not hours else f"{hours} h {minutes} min"
