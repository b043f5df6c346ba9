"""Where do the numbers go? To Weights & Biases, into files for it, or nowhere but the run's folder."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from finetune.config.schema import Tracking, TrackingMode
from finetune.errors import UserError
from finetune.machine.libraries import set_for_a_moment
from finetune.reporting.wandb_summary import prediction_table, summarise_result
from finetune.runs.folder import RunLabels
from finetune.runs.outcome import SUCCESSFUL, RunState, state_after_error
from finetune.runs.read import CompletedRun, run_folders
from finetune.secrets import without_secrets

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from wandb import Run, Settings

Print = Callable[[str], object]


@dataclass(frozen=True)
class Timeouts:
    """Seconds that W&B may take: to open a connection, to answer once connected, and to send the rest at the end."""

    connect: float = 2.0
    answer: float = 4.0
    finish: float = 20.0


@dataclass
class TrackedRun:
    """One run in W&B; without `wandb_run`, nothing is sent and every method does nothing."""

    wandb_run: "Run | None" = None
    print: Print = print

    def log(self, values: dict[str, float], step: int) -> None:
        """Add a point to each value's curve. A logged `tokens` can be chosen in W&B as the axis instead of the step."""
        self._send(lambda run: run.log(values, step=step))

    def summarise(self, values: dict[str, Any]) -> None:
        self._send(lambda run: run.summary.update(without_secrets(values)))

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        if self.wandb_run:
            from wandb import Table

            shown = Table(columns=[*columns], data=without_secrets(rows), allow_mixed_types=True)
            self._send(lambda run: run.log({key: shown}))

    def plot(self, key: str, figure: "Figure") -> None:
        if self.wandb_run:
            from wandb import Plotly

            self._send(lambda run: run.log({key: Plotly(figure)}))

    def artifact(self, kind: str, file: Path) -> None:
        def add(run: "Run") -> None:
            from wandb import Artifact

            artifact = Artifact(f"{run.id}-{kind}", type=kind)
            artifact.add_file(str(file), policy="immutable")  # else it is copied into the user's cache
            run.log_artifact(artifact)

        self._send(add)

    def finish(self, run: CompletedRun) -> None:
        """Send what a complete run leaves: data, costs and scores as its summary, all answers as a table, its page."""
        if self.wandb_run:
            self.summarise(summarise_result(run.result))
            if run.result.evaluation.split == "test":
                self.table("predictions", *prediction_table(run.predictions))
                self.artifact("report", run.folder / "report.html")

    def _send(self, action: Callable[["Run"], object]) -> None:
        if not self.wandb_run:
            return
        from wandb.sdk.mailbox import HandleAbandonedError

        try:
            action(self.wandb_run)
        except (OSError, HandleAbandonedError) as error:  # a timeout, a full disk, or wandb's process was killed
            how = f"wandb sync {self.wandb_run.settings.sync_dir}"
            self.print(f"W&B: not everything was sent ({str(error) or type(error).__name__}). To send the rest: {how}")
            self.wandb_run = None
            _tear_down()


@contextmanager
def start_tracking(
    tracking: Tracking,
    labels: RunLabels,
    folder: Path,
    is_main_process: bool = True,
    print_line: Print = print,
    timeouts: Timeouts = Timeouts(),
) -> Iterator[TrackedRun]:
    """The run in W&B for the length of the block; an exception in the block marks it as failed, unless it is pruned.

    The same name again continues the run. Where the service cannot be used, it is kept in `folder / "wandb"`.
    """
    if not (tracking.enabled and is_main_process):
        yield TrackedRun()
        return
    identity = {
        "id": run_id(labels.name),
        "name": labels.name,
        "project": tracking.project,
        "entity": tracking.entity,
        "group": tracking.group or labels.group,
        "job_type": labels.job_type,
        "tags": list(dict.fromkeys(without_secrets([*tracking.tags, *labels.tags]))),
        "config": without_secrets(labels.config),
        "dir": folder,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Wandb reads these from the environment only: tables are staged in the run's folder, no telemetry is sent.
    staged = os.environ.get("WANDB_DATA_DIR", str((folder / "wandb").absolute()))
    reporting = os.environ.get("WANDB_ERROR_REPORTING", "false")
    with (
        set_for_a_moment(os.environ, "WANDB_DATA_DIR", staged),
        set_for_a_moment(os.environ, "WANDB_ERROR_REPORTING", reporting),
    ):
        run = TrackedRun(_init(tracking.mode, identity, print_line, timeouts), print_line)
        state = RunState.complete
        try:
            yield run
        except BaseException as error:  # wandb's own `with` would print the stack besides
            state = state_after_error(error)
            raise
        finally:
            run.summarise({"state": state.value})
            run._send(lambda wandb_run: wandb_run.finish(int(state not in SUCCESSFUL)))  # which marks it as failed


def run_id(name: str) -> str:
    """The name as an id that W&B accepts: at most 128 characters, none of them reserved; different for each name."""
    plain = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)
    return name if plain == name and len(name) <= 128 else f"{plain[:119]}-{sha256(name.encode()).hexdigest()[:8]}"


def _init(mode: TrackingMode, identity: dict[str, Any], print_line: Print, timeouts: Timeouts) -> "Run":
    import wandb

    try:
        why_offline = _why_offline(mode, timeouts)
        if not why_offline:
            run = _open("online", identity, timeouts)
            print_line(f"W&B: {run.url}")
            return run
    except wandb.errors.Error as error:
        why_offline = str(error).splitlines()[0]
        _tear_down()  # the run that could not be opened holds the id
    try:
        run = _open("offline", identity, timeouts)
    except wandb.errors.UsageError as error:
        raise UserError(f"tracking: {error}") from error
    print_line(f"W&B: offline ({why_offline}). To send it later: python -m finetune sync {identity['dir']}")
    return run


def _users_settings() -> "Settings":
    """The environment's and W&B's settings file's; raises UserError for a value that wandb does not accept."""
    import wandb
    from pydantic import ValidationError

    try:
        return wandb.setup(wandb.Settings(silent=True)).settings  # silent, else wandb says where it found the key
    except ValidationError as error:
        [wrong, *_] = error.errors()
        setting = ".".join(map(str, wrong["loc"]))
        raise UserError(
            f"tracking: wandb's own setting {setting}={wrong['input']!r} (in the environment WANDB_{setting.upper()}): "
            f"{wrong['msg']}. Correct it, or tracking=none does without W&B"
        ) from None


def _open(mode: Literal["online", "offline"], identity: dict[str, Any], timeouts: Timeouts) -> "Run":
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        host="-",  # without one, the machine's name is sent
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        label_disable=True,
        save_code=False,
        symlink=False,
        x_disable_meta=True,  # holds the command line
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=timeouts.answer,
        finish_timeout=timeouts.finish,
        finish_timeout_raises=True,
    )
    return wandb.init(mode=mode, resume="allow", settings=settings, **identity)


def _tear_down() -> None:
    import wandb

    with suppress(OSError, SystemExit):  # raised where its process has ended already
        wandb.teardown()


def _why_offline(mode: TrackingMode, timeouts: Timeouts) -> str:
    """Why the run cannot or shall not be sent now; empty: it can."""
    settings = _users_settings()
    if mode is TrackingMode.offline:
        return "tracking.mode=offline"
    if mode is TrackingMode.auto and settings.mode != "online":
        return f"wandb's own mode is {settings.mode}"
    if not is_logged_in():
        return "nobody is logged in, see wandb login"
    if not is_reachable(settings.base_url, timeouts.connect):
        return f"no connection to {settings.base_url}"
    return ""


def is_logged_in() -> bool:
    """Whether the user has given wandb a key, in any of the ways that it knows."""
    from wandb.sdk.lib.wbauth import read_netrc_auth  # wandb.login asks for a key in versions before 0.31

    settings = _users_settings()
    return bool(settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url))


def is_reachable(url: str, seconds: float) -> bool:
    """Whether a connection to the URL's host, or to the proxy before it, opens in time."""
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    port = address.port or (443 if address.scheme == "https" else 80)
    opened = []

    def connect() -> None:
        with suppress(OSError), socket.create_connection((address.hostname, port), timeout=seconds):
            opened.append(True)

    connecting = Thread(target=connect, daemon=True)  # in a thread, as looking up a name obeys no timeout
    connecting.start()
    connecting.join(seconds)
    return bool(opened)


def sync_offline_runs(arguments: Iterable[str]) -> int:
    """Send what was not sent yet, and return wandb's exit code; raises UserError without a login or an offline run."""
    folders = list(dict.fromkeys(path for argument in arguments for path in run_folders(argument)))
    # A run that was continued lies in several parts, which are sent in the order of their time.
    parts = [part for folder in folders for part in sorted((folder / "wandb").glob("offline-run-*"))]
    if not parts:
        names = ", ".join(map(str, folders))
        raise UserError(f"{names}: no offline run lies there. Runs with tracking.mode=online are sent as they go.")
    if not is_logged_in():
        raise UserError("Nobody is logged in to W&B. Log in with: wandb login")
    return subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *map(str, parts)], check=False).returncode
