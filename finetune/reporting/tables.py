"""How does a table look in the terminal and on a page? And which tables of a run do both show?"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from rich import table as rich_table
from rich.text import Text

from finetune.evaluation.metrics import HIGHER_IS_BETTER, LENIENT
from finetune.reporting import html
from finetune.runs.result import BestPrompt, EvaluationResult, HarnessScore, Interval, name_arm

NAME_WIDTH = 40  # characters of a name beside its text


@dataclass(frozen=True)
class Table:
    """Cells below the names of their columns. The first column and those of prose stand left, numbers stand right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    prose: Collection[str] = ()  # the columns whose texts may be long; they are wrapped, so that numbers are not
    bold_rows: Collection[int] = ()
    bold_column: str = ""

    def without(self, *columns: str) -> "Table":
        """The same table without these columns."""
        kept = [i for i, name in enumerate(self.header) if name not in columns]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, header=[self.header[i] for i in kept], rows=rows)


def to_rich(table: Table) -> rich_table.Table:
    """The table for the terminal; what its cells hold is never read as markup."""
    drawn = rich_table.Table(title=Text(table.title, "table.title") or None, title_justify="left")
    for number, name in enumerate(table.header):
        style = "bold" if name == table.bold_column else ""
        if number == 0 or name in table.prose:
            drawn.add_column(Text(name), overflow="fold", style=style)
        else:
            drawn.add_column(Text(name), justify="right", no_wrap=bool(table.prose), style=style)
    for number, row in enumerate(table.rows):
        drawn.add_row(*(Text(str(cell)) for cell in row), style="bold" if number in table.bold_rows else "")
    return drawn


def to_html(table: Table) -> str:
    """The table for a page, below its title as a heading."""
    kinds = [' class="text"' if name in table.prose else "" for name in table.header]
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(kinds, table.header, strict=True))
    body = ""
    for number, row in enumerate(table.rows):
        style = ' class="bold"' if number in table.bold_rows else ""
        cells = (f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f"<tr{style}>{''.join(cells)}</tr>"
    title = html.heading(table.title) if table.title else ""
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def to_grid(texts: Iterable[tuple[str, str]]) -> rich_table.Table:
    """Named texts one below the other for the terminal, the counterpart of `html.example`."""
    grid = rich_table.Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right", max_width=NAME_WIDTH, overflow="fold")
    grid.add_column(overflow="fold")
    for name, text in texts:
        grid.add_row(Text(name), Text(text))
    return grid


def score_table(evaluation: EvaluationResult, against: str) -> Table:
    """Each metric by arm with its interval, and tuned minus the arm `against`; the headline metric is bold.

    A lenient metric is left out where all arms score as by the strict one.
    """
    arms = evaluation.arms
    differences = evaluation.differences[against]
    for strict, lenient in LENIENT.items():
        if {strict, lenient} <= differences.keys() and all(
            a.scores[strict] == a.scores[lenient] for a in arms.values()
        ):
            differences = {metric: difference for metric, difference in differences.items() if metric != lenient}
    rows = [
        [
            metric if HIGHER_IS_BETTER[metric] else f"{metric} (less is better)",
            *(format_interval(arm.scores[metric]) for arm in arms.values()),
            *(format_interval(difference, "+"), f"{difference.p:.2g}", difference.test),
        ]
        for metric, difference in differences.items()
    ]
    names = [format_arm(name, evaluation) for name in arms]
    header = ["metric", *names, f"tuned - {format_arm(against, evaluation)}", "p", "test"]
    title = f"{evaluation.prompts} held-out {evaluation.split} prompts"
    return Table(title, header, rows, bold_rows=[list(differences).index(evaluation.metric)])


def best_prompt_table(best: BestPrompt) -> Table:
    """The scores of the ways of prompting in each round of the choice on validation prompts; the chosen one is bold."""
    names = sorted(best.rounds[0].scores, key=lambda name: -sum(name in each.scores for each in best.rounds))
    rows = [
        [name, *(f"{each.scores[name]:.3f}" if name in each.scores else "" for each in best.rounds)] for name in names
    ]
    header = ["prompting", *(f"{each.prompts:,} prompts" for each in best.rounds)]
    return Table("Chosen on validation prompts", header, rows, bold_rows=[names.index(best.name)])


def describe_best_prompt(best: BestPrompt) -> str:
    """Which way of prompting is best, what it costs in tokens, and which ways were left out."""
    chosen = f"Best prompt, chosen on validation prompts: {best.name}. A request has {best.prompt_tokens:,.0f} tokens"
    left_out = (
        f" Left out, as they do not fit the model's context: {'; '.join(best.left_out)}." if best.left_out else ""
    )
    return f"{chosen}, that of the tuned model {best.tuned_prompt_tokens:,.0f}.{left_out}"


def harness_table(scores: dict[str, dict[str, HarnessScore]]) -> Table:
    """Each metric of each task of lm-evaluation-harness before and after training, with its standard error."""
    rows = []
    for task, metrics in scores.items():
        for metric, score in metrics.items():
            numbers = (score.base, score.base_stderr, score.tuned, score.tuned_stderr)
            texts = ["?" if number is None else f"{number:.3f}" for number in numbers]
            rows.append([task, metric, " ± ".join(texts[:2]), " ± ".join(texts[2:])])
    return Table("lm-evaluation-harness", ["task", "metric", "base", "tuned"], rows, prose=["metric"])


def format_arm(arm: str, evaluation: EvaluationResult) -> str:
    """An arm as users call it: `3-shot` for `few_shot`."""
    return name_arm(arm, evaluation.shots)


def format_interval(interval: Interval, sign: str = "") -> str:
    """A value and the ends of its interval: `0.417 [0.35, 0.48]`; an end that nobody knows is `?`."""
    low, high = (f"{end:{sign}.2f}" if isfinite(end) else "?" for end in (interval.low, interval.high))
    return f"{interval.mean:{sign}.3f} [{low}, {high}]"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
