"""How does one exact file come out of the package index that pip is set up for?"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from finetune.errors import UserError

if TYPE_CHECKING:
    from requests import Session

PYPI = "https://pypi.org/simple"
TIMEOUT_SECONDS = 30
# The kinds of network failures of requests.
FAILURES = {
    "SSLError": "its certificate could not be verified",
    "ProxyError": "the proxy could not be reached",
    "ConnectTimeout": "it did not answer in time",
    "ReadTimeout": "it stopped answering",
    "ChunkedEncodingError": "the download was cut off",
    "ConnectionError": "it could not be reached",
}
OPTIONS = ("index-url", "extra-index-url", "no-index", "cert", "proxy")


def download_archive(package: str, archive: str, target: Path) -> None:
    """Write one archive of a package to `target`, from the first of pip's http(s) indexes that has it.

    The caller checks the bytes: what an index says about its own files proves nothing.
    """
    options = _pip_options()
    problems = []
    for index in _indexes(options):
        problem = _download_from(index, package, archive, target, options)
        if problem is None:
            return
        problems.append(f"{_without_password(index)}: {problem}")
    tried = "; ".join(problems) or "pip is told to use no index (no-index)"
    raise UserError(
        f"{archive} could not be downloaded ({tried}). Nothing was kept. Check the network and run the command "
        "again; pip's settings are honoured (PIP_INDEX_URL, PIP_PROXY, PIP_CERT). For a machine without a network, "
        "copy the cache folder from one that has it and point FINETUNE_CACHE to the copy."
    )


def _download_from(index: str, package: str, archive: str, target: Path, options: dict[str, str]) -> str | None:
    """Download the archive from one index; the reason in a few words where that failed."""
    from pypi_simple import NoSuchProjectError, PyPISimple
    from requests import HTTPError, RequestException

    progress: Callable[[int | None], Any] = partial(_show_progress, archive)
    with PyPISimple(index) as client:
        _set_up_session(client.s, options)
        try:
            page = client.get_project_page(package, timeout=TIMEOUT_SECONDS)
            listed = next((file for file in page.packages if file.filename == archive), None)
            if listed is None:
                return "it does not list that file"
            client.download_package(listed, target, verify=False, progress=progress, timeout=TIMEOUT_SECONDS)
        except NoSuchProjectError:
            return f"it does not know {package}"
        except HTTPError as error:
            return f"it answered {error.response.status_code}" if error.response is not None else str(error)
        except RequestException as error:
            # The library's own text is a nest of object addresses.
            return FAILURES.get(type(error).__name__) or _without_password(str(error))
    return None


def _set_up_session(session: "Session", options: dict[str, str]) -> None:
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retries = Retry(total=2, backoff_factor=0.5, status_forcelist=[429, 502, 503, 504], raise_on_status=False)
    for scheme in ("http", "https"):
        session.mount(f"{scheme}://", HTTPAdapter(max_retries=retries))
        if options.get("proxy"):
            session.proxies[scheme] = options["proxy"]
    if options.get("cert"):
        session.verify = options["cert"]


def _pip_options() -> dict[str, str]:
    """Pip's own settings, as `pip install` would see them: files first, then this command's section, then PIP_*."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for section, key, value in re.findall(r"^(global|install|:env:)\.([\w-]+)=(.+)$", listed.stdout, re.MULTILINE):
        sections[section][key] = str(ast.literal_eval(value))
    if listed.returncode != 0:  # an environment without pip: uv makes such
        names = {key: f"PIP_{key.replace('-', '_').upper()}" for key in OPTIONS}
        sections[":env:"] = {key: os.environ[name] for key, name in names.items() if name in os.environ}
    return sections["global"] | sections["install"] | sections[":env:"]


def _indexes(options: dict[str, str]) -> list[str]:
    """The http(s) indexes that pip would look at; folders and find-links are not searched."""
    if options.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        return []
    urls = [options.get("index-url") or PYPI, *options.get("extra-index-url", "").split()]
    return [url for url in urls if url.startswith(("http://", "https://"))]


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


@contextmanager
def _show_progress(archive: str, size: int | None) -> Iterator[SimpleNamespace]:
    """A progress bar in the form that pypi-simple wants: it calls `update` with the bytes that have come."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Fetching {archive}", total=size)
        yield SimpleNamespace(update=lambda count: bar.advance(task, count))
