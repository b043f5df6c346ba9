"""How does the program begin and end? What went wrong is said once, and the exit code tells whose fault it was."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from finetune import check, hydra_error, overrides
from finetune.schema import Config, UserError, register

# What a wrong configuration raises while it is composed.
MISTAKES = (UserError, HydraException, OmegaConfBaseException, YAMLError)


def start(main: Callable[[], None]) -> None:
    """Check the command line, then hand over to Hydra's `main`.

    The exit code is 0 for success, 2 for a user's mistake, 1 for a failure, with its stack, and 130 for Ctrl-C.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    try:
        overrides.check_overrides(sys.argv[1:])
        main()
    except MISTAKES as error:
        stop(error)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the newest checkpoint, if there is one.", file=sys.stderr)
        sys.exit(130)


def run_job(run: Callable[[Config], None], config: DictConfig) -> None:
    """Call `run` with what Hydra composed, once it is valid; a user's mistake ends the program, and with it a sweep."""
    try:
        settings = check.read(config)
        check.validate(settings)
        run(settings)
    except UserError as error:
        stop(error)  # here and not in `start`, because Hydra would add a line of its own
    except MISTAKES as error:
        raise RuntimeError("the run failed") from error  # not while composing, so it is no mistake of the user's


def compose(arguments: list[str]) -> Config:
    """The checked configuration of `python run.py ARGUMENTS`, for a program or a test that has no command line."""
    overrides.check_overrides(arguments)
    register()
    with initialize_config_dir(str(overrides.CONF), version_base="1.3"):
        settings = check.read(hydra_compose("config", overrides=arguments))
    check.validate(settings)
    return settings


def stop(error: Exception) -> NoReturn:
    """End the program with a user's mistake told in one paragraph."""
    print(f"Error: {hydra_error.explain(error)}", file=sys.stderr)
    sys.exit(2)
