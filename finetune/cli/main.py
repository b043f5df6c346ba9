"""How does the program begin and end? What went wrong is printed once, and the exit code tells whose fault it was."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from finetune.cli.compose import Grid, compose_config, compose_grid, is_alone, is_our_launcher
from finetune.cli.environment import note_variables_read, settings_of
from finetune.cli.overrides import check_overrides
from finetune.cli.validate import explain_error, read_config, validate_config
from finetune.config.schema import Config, Stage
from finetune.config.spelling import spell_quoted
from finetune.errors import UserError
from finetune.runs.files import HYDRAS_RECORD, hide_secrets
from finetune.runs.outcome import SUCCESSFUL, FailedTrialsError, Preempted
from finetune.runs.stop import stop_at_once
from finetune.runs.sweep_record import open_sweep_record, read_trials
from finetune.secrets import mask_output
from finetune.sweeps.other_launchers import announce_sweep, follow_sweep, refuse_limits, run_submitted_trial

TO_BE_CONTINUED = 75  # EX_TEMPFAIL of sysexits.h: try again later
MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError)


def start_program(main: Callable[[], None]) -> None:
    """Check the command line, then hand over to Hydra's `main`.

    The exit code is 0 for success, 2 for a user's mistake, 1 for a failure, with its stack, 130 for Ctrl-C, and 75 for
    a run that another signal stopped, and that the same command continues.
    """
    mask_output()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop_at_once)
    note_variables_read(settings_of(sys.argv[1:]))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda text: text not in ("-m", "--multirun"))  # may stand anywhere
    try:
        check_overrides(sys.argv[1:])
        grid = check_sweep(sys.argv[1:])
        if grid and grid.configs[0].stage is Stage.train:
            _run_grid(grid, main)
        else:
            main()
    except FailedTrialsError:
        sys.exit(1)
    except MISTAKES as error:
        exit_with_mistake(error)
    except KeyboardInterrupt as stop:
        Console().show_cursor(True)  # a progress bar hides it
        since = f" {time.monotonic() - stop.at:.1f} s after {stop}" if isinstance(stop, Preempted) else ""
        print(f"Stopped{since}. The same command goes on from what was kept.", file=sys.stderr)
        sys.exit(TO_BE_CONTINUED if isinstance(stop, Preempted) and str(stop) != "SIGINT" else 130)


def check_sweep(arguments: list[str]) -> Grid | None:
    """Compose and check every run of a grid, so that none starts before the last is known to be valid."""
    grid = compose_grid(arguments)
    if grid and (repeated := grid.configs[0].sweep.repeat_best):
        raise UserError(
            f"sweep.repeat_best={repeated} is of a search. In a grid, seeds are one more setting: seed=1,2,3."
        )
    if grid and grid.configs[0].stage is Stage.train and not is_our_launcher(grid.common.hydra.launcher):
        refuse_limits(grid.configs[0].sweep)
    return grid


def _run_grid(grid: Grid, main: Callable[[], None]) -> None:
    """Raise FailedTrialsError where a trial of the grid came to no good end; each is in the record of the sweep."""
    hydra = grid.common.hydra
    record = open_sweep_record(grid.common.output_dir, grid.common.sweep.name, sys.argv[1:])
    if is_our_launcher(hydra.launcher):
        main()
        if not is_alone():  # then Hydra runs the trials in this process, and nothing is recorded
            return
    else:
        from finetune.sweeps.best import report_best_of_grid

        announce_sweep(record, grid.overrides, grid.configs, hydra.runtime.choices["hydra/launcher"])
        sys.argv.append(f"sweep.name={spell_quoted(record.folder.name)}")
        try:
            with follow_sweep(record, grid.configs):
                main()
        finally:
            hide_secrets(Path(hydra.sweep.dir) / HYDRAS_RECORD)
        report_best_of_grid(record.folder, compose_config, grid.configs[0].tracking)
    trials = read_trials(record.file)
    if any(trials[number].state not in SUCCESSFUL for number in range(len(grid.configs)) if number in trials):
        raise FailedTrialsError


def run_job(run: Callable[[Config], object], config: DictConfig) -> object:
    """Call `run` with what Hydra composed, once it is valid, and return what it returns; a mistake ends the program.

    A trial of a sweep that another launcher than ours runs is recorded, and how it ended is returned.
    """
    mask_output()  # once more: another launcher's process begins here
    try:
        settings = validate_config(read_config(config))
        hydra = HydraConfig.instance().cfg and HydraConfig.get()  # none in a program that has no command line
        in_sweep = hydra and hydra.mode is RunMode.MULTIRUN and settings.sweep.name and settings.stage is Stage.train
        if hydra and in_sweep and not is_our_launcher(hydra.launcher):
            return run_submitted_trial(run, settings, hydra.job.num, list(hydra.overrides.task))
        return run(settings)
    except UserError as error:
        exit_with_mistake(error)  # here and not in `start_program`, because Hydra would add a line of its own
    except MISTAKES as error:
        raise RuntimeError("the run failed") from error  # not while composing, so it is no mistake of the user's


def exit_with_mistake(error: Exception) -> NoReturn:
    """End the program with a user's mistake told in one paragraph."""
    print(f"Error: {explain_error(error)}", file=sys.stderr)
    sys.exit(2)
