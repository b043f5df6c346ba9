"""Which commands are there for runs that are done? See `python -m finetune --help`."""

import argparse
import sys
from pathlib import Path

from finetune.errors import UserError
from finetune.secrets import mask_output


def run_command() -> None:
    """Run the command; the exit code is 0 for success and 2 for a user's mistake, printed as one paragraph."""
    mask_output()
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
    compare = commands.add_parser("compare", help="rank runs, and say which of them cannot be told apart")
    compare.add_argument("--metric", help="rank by this one of the runs' metrics instead of their first")
    compare.add_argument("--prompts", type=int, default=3, metavar="N", help="show N prompts that set the runs apart")
    page_help = "write one page with the same, curves and all answers"
    compare.add_argument("--html", type=Path, metavar="FILE", help=page_help)
    sync = commands.add_parser("sync", help="send offline runs to W&B")
    runs_help = "a run's folder, a folder of runs, a sweep's, or a glob of these"
    for command, call in ((compare, compare_command), (sync, sync_command)):
        command.add_argument("runs", nargs="+", metavar="RUN", help=runs_help)
        command.set_defaults(call=call)
    return program


def compare_command(arguments: argparse.Namespace) -> None:
    """Print what runs, or a sweep so far, have come to, and write it as a page where a file is named."""
    from finetune.runs.read import find_runs, is_sweep

    first, page = Path(arguments.runs[0]), arguments.html
    if len(arguments.runs) == 1 and is_sweep(first):
        from finetune.sweeps.report import show_sweep, write_sweep_page
        from finetune.sweeps.sweep_result import read_sweep

        result = read_sweep(first, arguments.metric)
        show_sweep(result, arguments.prompts)
        if page:
            write_sweep_page(page, result)
    else:
        from finetune.comparison.compare import compare_runs
        from finetune.comparison.page import write_comparison_page
        from finetune.comparison.table import show_comparisons

        runs, unfinished = find_runs(arguments.runs)
        comparisons = compare_runs(runs, arguments.metric)
        show_comparisons(comparisons, unfinished, arguments.prompts)
        if page:
            write_comparison_page(page, comparisons, unfinished)
    if page:
        print(f"Written: {page}")


def sync_command(arguments: argparse.Namespace) -> None:
    """Send the runs; the exit code is wandb's."""
    from finetune.reporting.wandb import sync_offline_runs

    sys.exit(sync_offline_runs(arguments.runs))


if __name__ == "__main__":
    run_command()
