"""What can be asked about runs that are done: `python -m finetune --help`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from finetune.errors import UserError


def run_command() -> None:
    """The exit code is 0 for success and 2 for a user's mistake, which is told in one paragraph."""
    arguments = build_parser().parse_args()
    try:
        arguments.call(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    """What the program understands; `call` is the function of the command."""
    program = argparse.ArgumentParser(prog="python -m finetune", description="Look at runs; `run.py` makes them.")
    commands = program.add_subparsers(required=True, metavar="COMMAND")
    known = "a run's folder, a folder of runs, a sweep's, or a glob of these"
    where: dict[str, Any] = {"nargs": "+", "metavar": "RUN", "help": known}
    compare = commands.add_parser("compare", help="rank runs, and say which of them cannot be told apart")
    compare.add_argument("runs", **where)
    compare.add_argument("--metric", help="rank by this one of the runs' metrics instead of their first")
    compare.add_argument("--prompts", type=int, default=3, metavar="N", help="show N prompts that set the runs apart")
    compare.add_argument("--html", metavar="FILE", help="write one page with the same, curves and all answers")
    compare.set_defaults(call=compare_command)
    sync = commands.add_parser("sync", help="send offline runs to W&B")
    sync.add_argument("runs", **where)
    sync.set_defaults(call=sync_command)
    return program


def compare_command(arguments: argparse.Namespace) -> None:
    """Print the comparison, and write it as a page if asked to."""
    from finetune.comparison.compare import compare_runs
    from finetune.comparison.table import show_comparisons
    from finetune.runs.read import find_runs, is_sweep

    if len(arguments.runs) == 1 and is_sweep(Path(arguments.runs[0])):
        compare_sweep_command(Path(arguments.runs[0]), arguments)
        return
    runs, unfinished = find_runs(arguments.runs)
    comparisons = compare_runs(runs, arguments.metric)
    show_comparisons(comparisons, unfinished, arguments.prompts)
    if arguments.html:
        from finetune.comparison.page import write_comparison_page

        write_comparison_page(Path(arguments.html), comparisons, unfinished)
        print(f"Written: {arguments.html}")


def compare_sweep_command(folder: Path, arguments: argparse.Namespace) -> None:
    """Print what a sweep has come to so far, and write it as a page if asked to."""
    from finetune.sweeps.report import show_sweep
    from finetune.sweeps.sweep_result import read_sweep

    found = read_sweep(folder, arguments.metric)
    show_sweep(found, arguments.prompts)
    if arguments.html:
        from finetune.sweeps.report import write_sweep_page

        write_sweep_page(Path(arguments.html), found)
        print(f"Written: {arguments.html}")


def sync_command(arguments: argparse.Namespace) -> None:
    """Send the runs; the exit code is wandb's."""
    from finetune.reporting.wandb import sync_offline_runs

    sys.exit(sync_offline_runs(arguments.runs))


if __name__ == "__main__":
    run_command()
