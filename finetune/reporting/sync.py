"""How do offline runs get to W&B later? `python -m finetune sync RUN...`, by wandb's own command."""

import subprocess
import sys
from collections.abc import Iterable

from finetune.comparison import compare
from finetune.config.schema import UserError
from finetune.reporting import wandb as tracking


def sync(arguments: Iterable[str]) -> int:
    """Send what lies in the runs' folders and was not sent yet, and return wandb's exit code.

    A run that was continued lies in several parts, which wandb sends in the order of their time. Raises UserError
    where nobody is logged in, or no offline run is there.
    """
    folders = list(dict.fromkeys(path for argument in arguments for path in compare.folders(argument)))
    parts = [part for folder in folders for part in sorted((folder / "wandb").glob("offline-run-*"))]
    if not parts:
        names = ", ".join(map(str, folders))
        raise UserError(f"{names}: no offline run lies there. Runs with tracking.mode=online are sent as they go.")
    if not tracking.is_logged_in():
        raise UserError("Nobody is logged in to W&B. Log in with: wandb login")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *map(str, parts)], check=False).returncode
