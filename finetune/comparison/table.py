"""How does a comparison of runs look in the terminal?"""

from itertools import islice
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from finetune.comparison.compare import Comparison
from finetune.comparison.pairwise import FEWEST_FOR_IMPORTANCE, IMPORTANCE_METHOD, prompt_score
from finetune.config.spelling import spell
from finetune.evaluation.metrics import SPELLED
from finetune.machine.allowance import GIB
from finetune.reporting.tables import Table, format_interval, to_grid, to_rich

BEST_SHOWN = 10  # of a sweep's ranking at its end


def show_comparisons(comparisons: list[Comparison], unfinished: list[Path], prompts: int) -> None:
    """Print the tables, and what is left out of them; `prompts` are shown on which the runs disagree most."""
    console = Console(highlight=False)
    if len(comparisons) > 1:
        console.print(different_prompts(comparisons), style="yellow", soft_wrap=True)
    for comparison in comparisons:
        runs, shown = comparison.runs, comparison.disagreements[:prompts]
        parts = [*ranking_parts(comparison, len(runs)), to_rich(cost_table(comparison))]
        parts += [Text.assemble((run.name, "bold"), f": {run.verdict}") for run in runs if run.verdict]
        if len(runs) > 1:
            most = f"; the {len(shown)} with the largest difference:" if shown else "."
            parts.append(Text(f"\nThe runs' scores differ on {len(comparison.disagreements):,} prompts{most}"))
        console.print(Group(*parts, *(_answers(comparison, index) for index, _ in shown)))
    if unfinished:
        count, names = len(unfinished), ", ".join(folder.name for folder in unfinished)
        left_out = f"Left out, as not complete: {count} run{'s' if count > 1 else ''} ({names})."
        console.print(left_out, style="yellow", markup=False, soft_wrap=True)


def different_prompts(comparisons: list[Comparison]) -> str:
    """Why there is more than one comparison."""
    return f"The runs answered {len(comparisons)} different sets of prompts; only runs on the same are paired."


def ranking_parts(comparison: Comparison, most: int) -> list[RenderableType]:
    """The best runs, how the groups were found, and the settings that mattered."""
    count = len(comparison.runs)
    parts: list[RenderableType] = [to_rich(ranking_table(comparison, most))]
    if count > most:
        parts.append(Text(f"... and {count - most} more"))
    if count > 1:
        parts.append(Text(comparison.correction))
    if count >= FEWEST_FOR_IMPORTANCE:
        importance, why_not = comparison.importance
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importance.items())
        parts.append(Text(why_not or f"What mattered ({IMPORTANCE_METHOD}): {shares}"))
    return parts


def ranking_table(comparison: Comparison, most: int) -> Table:
    """The best runs: group, score, difference to the best with its corrected p, and the settings that differ."""
    count, prompts, metric = len(comparison.runs), len(comparison.runs[0].predictions), comparison.metric
    columns = zip(comparison.groups, comparison.runs, comparison.to_best, comparison.settings, strict=True)
    rows = []
    for group, run, to_best, settings in islice(columns, most):
        difference = [format_interval(to_best, "+"), f"{to_best.p:.2g}"] if to_best else ["best", ""]
        rows.append([group, run.name, format_interval(run.tuned(metric)), *difference, format_settings(settings)])
    title = f"{count} run{'s' if count > 1 else ''} on {prompts:,} {comparison.split} prompts by {SPELLED[metric]}"
    header = ["group", "run", metric, "minus the best", "p", "settings that differ"]
    return Table(title, header, rows, prose=["run", "settings that differ"])


def cost_table(comparison: Comparison) -> Table:
    """What each run took."""
    rows = []
    for run in comparison.runs:
        training, seconds = run.result.training, sum(run.result.seconds.values())
        memory = f"{training.peak_memory_bytes / GIB:.2f} GiB"
        rows.append([run.name, f"{seconds:,.0f}", f"{training.tokens:,}", memory])
    return Table("Cost", ["run", "seconds", "tokens trained on", "peak memory"], rows, prose=["run"])


def format_settings(settings: dict[str, object]) -> str:
    """Settings as on the command line, numbers with four digits."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else spell(value) for key, value in settings.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def _answers(comparison: Comparison, index: int) -> RenderableType:
    """A prompt and what each run answered to it, with its score."""
    prompt = comparison.runs[0].predictions[index]
    texts = [("", ""), ("prompt", prompt.question), ("reference", prompt.reference)]
    for run in comparison.runs:
        row = run.predictions[index]
        texts.append((f"{run.name} {prompt_score(row, comparison.metric):.2f}", row.arms["tuned"].text))
    return to_grid(texts)
