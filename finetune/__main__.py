"""What can be asked about runs that are done: `python -m finetune --help`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from finetune.config.schema import UserError


def main() -> None:
    """The exit code is 0 for success and 2 for a user's mistake, which is told in one paragraph."""
    arguments = parser().parse_args()
    try:
        arguments.call(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
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
    compare.set_defaults(call=compare_runs)
    sync = commands.add_parser("sync", help="send offline runs to W&B")
    sync.add_argument("runs", **where)
    sync.set_defaults(call=sync_runs)
    return program


def compare_runs(arguments: argparse.Namespace) -> None:
    """Print the comparison, and write it as a page if asked to."""
    from finetune.comparison import compare
    from finetune.comparison import table as compare_table

    if len(arguments.runs) == 1 and compare.is_sweep(Path(arguments.runs[0])):
        compare_sweep(Path(arguments.runs[0]), arguments)
        return
    runs, unfinished = compare.find(arguments.runs)
    comparisons = compare.compare(runs, arguments.metric)
    compare_table.show(comparisons, unfinished, arguments.prompts)
    if arguments.html:
        from finetune.comparison import page as compare_page

        compare_page.write(Path(arguments.html), comparisons, unfinished)
        print(f"Written: {arguments.html}")


def compare_sweep(folder: Path, arguments: argparse.Namespace) -> None:
    """Print what a sweep has come to so far, and write it as a page if asked to."""
    from finetune.comparison import table as compare_table
    from finetune.sweeps import sweep_result

    found = sweep_result.read(folder, arguments.metric)
    compare_table.show_sweep(found, arguments.prompts)
    if arguments.html:
        from finetune.comparison import page as compare_page

        compare_page.write_sweep(Path(arguments.html), found)
        print(f"Written: {arguments.html}")


def sync_runs(arguments: argparse.Namespace) -> None:
    """Send the runs; the exit code is wandb's."""
    from finetune.reporting import sync

    sys.exit(sync.sync(arguments.runs))


if __name__ == "__main__":
    main()
