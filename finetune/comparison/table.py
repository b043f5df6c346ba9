"""How does a comparison of runs look in the terminal?"""

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.comparison.compare import Comparison
from finetune.comparison.pairwise import FEWEST_FOR_IMPORTANCE, IMPORTANCE_METHOD, prompt_score
from finetune.config.spelling import spell_plain
from finetune.evaluation.metrics import SPELLED
from finetune.evaluation.statistics import Difference
from finetune.reporting.console import first_answer, format_interval

# At the end of a sweep so many are shown of its ranking.
BEST_SHOWN = 10


def show_comparisons(comparisons: list[Comparison], unfinished: list[Path], prompts: int) -> None:
    """Print the tables, and what is left out of them."""
    console = Console(highlight=False)
    if len(comparisons) > 1:
        told = f"The runs answered {len(comparisons)} different sets of prompts; only runs on the same are paired."
        console.print(told, style="yellow", soft_wrap=True)
    for comparison in comparisons:
        console.print(comparison_tables(comparison, prompts))
    if unfinished:
        names = ", ".join(folder.name for folder in unfinished)
        told = f"Left out, as not complete: {len(unfinished)} run{'s' if len(unfinished) > 1 else ''} ({names})."
        console.print(told, style="yellow", markup=False, soft_wrap=True)


def comparison_tables(comparison: Comparison, prompts: int) -> RenderableType:
    """The ranking, cost and verdicts, and the prompts on which the runs disagree most."""
    parts = [*ranking_tables(comparison, len(comparison.runs)), _cost(comparison), *_verdicts(comparison)]
    shown = comparison.disagreements[:prompts]
    if len(comparison.runs) > 1:
        count = len(comparison.disagreements)
        most = f"; the {len(shown)} with the largest difference:" if shown else "."
        parts.append(Text(f"\nThe runs' scores differ on {count:,} prompts{most}"))
    return Group(*parts, *(_prompt(comparison, index) for index, _ in shown))


def settings_of(values: dict[str, Any]) -> str:
    """Settings as on the command line, numbers with four digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else spell_plain(value) for key, value in values.items()}
    return " ".join(f"{key}={text}" for key, text in shown.items())


def cost(result: dict[str, Any]) -> dict[str, str]:
    """What the run took."""
    training = result["training"]
    return {
        "seconds": f"{sum(result['seconds'].values()):,.0f}",
        "tokens trained on": f"{training['tokens']:,}",
        "peak memory": f"{training['peak_memory_bytes'] / 2**30:.2f} GiB",
    }


def to_best(found: Difference | None) -> list[str]:
    """A run minus the best run, with its interval, and the corrected p."""
    if found is None:
        return ["best", ""]
    ends = {"mean": found.mean, "low": found.low, "high": found.high}
    return [format_interval(ends, "+"), f"{found.p:.2g}"]


def ranking_tables(comparison: Comparison, most: int) -> list[RenderableType]:
    """The best runs, how the groups were found, and the settings that mattered."""
    count = len(comparison.runs)
    parts: list[RenderableType] = [_ranked(comparison, most)]
    if count > most:
        parts.append(Text(f"... and {count - most} more"))
    if count > 1:
        parts.append(Text(comparison.correction))
    if count >= FEWEST_FOR_IMPORTANCE:
        found, why_not = comparison.importance
        told = ", ".join(f"{key} {share:.0%}" for key, share in found.items())
        parts.append(Text(why_not or f"What mattered ({IMPORTANCE_METHOD}): {told}"))
    return parts


def last_line(reason: str) -> str:
    """Why a trial ended, without the stack of an exception."""
    return reason.rstrip().rpartition("\n")[2]


def _ranked(comparison: Comparison, most: int) -> Table:
    count, prompts = len(comparison.runs), len(comparison.runs[0].predictions)
    asked = f"{prompts:,} {comparison.split} prompts by {SPELLED[comparison.metric]}"
    title = f"{count} run{'s' if count > 1 else ''} on {asked}"
    table = Table(title=title, title_justify="left")
    table.add_column("group")
    table.add_column("run", overflow="fold")
    table.add_column(comparison.metric, justify="right", no_wrap=True)
    table.add_column("minus the best", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("settings that differ", overflow="fold")
    for i, run in enumerate(comparison.runs[:most]):
        given = Text(settings_of(comparison.settings[i]))
        scored = format_interval(run.tuned(comparison.metric))
        table.add_row(comparison.groups[i], Text(run.name), scored, *to_best(comparison.to_best[i]), given)
    return table


def _cost(comparison: Comparison) -> Table:
    table = Table(title="Cost", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in cost(comparison.runs[0].result):
        table.add_column(name, justify="right")
    for run in comparison.runs:
        table.add_row(Text(run.name), *cost(run.result).values())
    return table


def _verdicts(comparison: Comparison) -> list[RenderableType]:
    return [Text.assemble((run.name, "bold"), f": {run.verdict}") for run in comparison.runs if run.verdict]


def _prompt(comparison: Comparison, index: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right", max_width=40, overflow="fold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    row = comparison.runs[0].predictions[index]
    table.add_row("", "", "")
    table.add_row("prompt", "", Text(row["prompt"][-1]["content"] if row["prompt"] else ""))
    table.add_row("reference", "", Text(row["reference"]))
    for run in comparison.runs:
        answered = run.predictions[index]
        found = prompt_score(answered, "tuned", comparison.metric)
        table.add_row(Text(run.name), f"{found:.2f}", Text(first_answer(answered["tuned"])))
    return table
