"""How does the program begin and end? What went wrong is said once, and the exit code tells whose fault it was."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from finetune.cli.compose import compose_config
from finetune.cli.hydra_error import explain_error
from finetune.cli.overrides import CONF, check_overrides
from finetune.cli.validate import read_config, validate_config
from finetune.config.schema import Config, Stage, register_schema
from finetune.config.spelling import spell_quoted
from finetune.errors import UserError
from finetune.runs.outcome import SUCCESSFUL, Outcome
from finetune.runs.sweep_record import ended
from finetune.sweeps.other_launchers import (
    SubmittedSweep,
    announce_sweep,
    follow_sweep,
    refuse_limits,
    run_submitted_trial,
)

MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError)


def start_program(main: Callable[[], None]) -> None:
    """Check the command line, then hand over to Hydra's `main`.

    The exit code is 0 for success, 2 for a user's mistake, 1 for a failure, with its stack, and 130 for Ctrl-C.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda text: text not in ("-m", "--multirun"))  # may stand anywhere
    try:
        check_overrides(sys.argv[1:])
        elsewhere = check_sweep(sys.argv[1:])
        if elsewhere:
            sys.argv.append(f"sweep.name={spell_quoted(elsewhere.record.folder.name)}")
        with follow_sweep(elsewhere):
            main()
        if elsewhere:
            from finetune.sweeps.best import report_best_of_grid

            report_best_of_grid(elsewhere.record.folder, compose_config, elsewhere.configs[0].tracking)
        if any(state not in SUCCESSFUL for state in ended.values()):
            sys.exit(1)
    except MISTAKES as error:
        exit_with_mistake(error)
    except KeyboardInterrupt:
        Console().show_cursor(True)  # a progress bar hides it
        print("Stopped. The same command goes on from the newest checkpoint, if there is one.", file=sys.stderr)
        sys.exit(130)


def run_job(run: Callable[[Config], None], config: DictConfig) -> Outcome | None:
    """Call `run` with what Hydra composed, once it is valid; a user's mistake ends the program.

    A trial of a sweep is recorded instead, where another launcher than ours runs it, and how it ended is returned.
    """
    try:
        settings = read_config(config)
        validate_config(settings)
        hydra = HydraConfig.instance().cfg and HydraConfig.get()  # none in a program that has no command line
        if hydra and hydra.mode is RunMode.MULTIRUN and settings.sweep.name and _is_elsewhere(hydra.launcher, settings):
            return run_submitted_trial(run, settings, hydra.job.num, list(hydra.overrides.task))
        run(settings)
    except UserError as error:
        exit_with_mistake(error)  # here and not in `start`, because Hydra would add a line of its own
    except MISTAKES as error:
        raise RuntimeError("the run failed") from error  # not while composing, so it is no mistake of the user's
    return None


def check_sweep(arguments: list[str]) -> SubmittedSweep | None:
    """Compose and check every run of a grid sweep, so that none starts before the last is known to be valid.

    A sweep whose runs another launcher than ours is to start is written down and returned.
    """
    flags = get_args_parser().parse_args(arguments)
    parser = OverridesParser.create()
    given = parser.parse_overrides(flags.overrides)
    asked = flags.multirun or any(override.key_or_group in ("sweep", "hydra.mode") for override in given)
    if not asked or flags.config_path or flags.config_name or flags.config_dir or flags.cfg or flags.info:
        return None
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        fixed = [override.input_line for override in given if override.input_line and not override.is_sweep_override()]
        hydra = hydra_compose("config", overrides=fixed, return_hydra_config=True).hydra
        if not str(hydra.sweeper.get("_target_")).endswith("BasicSweeper"):
            return None  # which runs there will be follows from their results
        params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        [runs] = BasicSweeper.split_arguments(parser.parse_overrides([*params, *flags.overrides]), None)
        cells = [(run, read_config(hydra_compose("config", overrides=run))) for run in runs]
    for _, settings in cells:
        validate_config(settings)
    if repeated := cells[0][1].sweep.repeat_best:
        raise UserError(
            f"sweep.repeat_best={repeated} is of a search. In a grid, seeds are one more setting: seed=1,2,3."
        )
    if _is_elsewhere(hydra.launcher, cells[0][1]):
        refuse_limits(cells[0][1].sweep)
        return announce_sweep(arguments, cells, hydra.runtime.choices["hydra/launcher"])
    return None


def _is_elsewhere(launcher: DictConfig, settings: Config) -> bool:
    """Whether another launcher than ours is to train the trials."""
    ours = str(launcher.get("_target_")).endswith(".ProcessLauncher")
    return not ours and settings.stage is Stage.train


def exit_with_mistake(error: Exception) -> NoReturn:
    """End the program with a user's mistake told in one paragraph."""
    print(f"Error: {explain_error(error)}", file=sys.stderr)
    sys.exit(2)
