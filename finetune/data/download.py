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
from typing import Any

from pypi_simple import NoSuchProjectError, PyPISimple
from requests import HTTPError, RequestException
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from urllib3.util import Retry

from finetune.errors import UserError

PYPI = "https://pypi.org/simple"
TIMEOUT_SECONDS = 30
FAILURES = {  # of the network, as requests names them
    "SSLError": "its certificate could not be verified",
    "ProxyError": "the proxy could not be reached",
    "ConnectTimeout": "it did not answer in time",
    "ReadTimeout": "it stopped answering",
    "ChunkedEncodingError": "the download was cut off",
    "ConnectionError": "it could not be reached",
}
OPTIONS = ("index-url", "extra-index-url", "no-index", "cert", "proxy")
SECTIONS = ("global", "install", ":env:")  # of pip's settings: a later one wins


def download_archive(package: str, archive: str, target: Path) -> None:
    """Write one archive of a package to `target`, from the first of pip's http(s) indexes that has it.

    The caller checks the bytes: what an index says about its own files proves nothing.
    """
    options = _pip_options()
    indexes = [options.get("index-url") or PYPI, *options.get("extra-index-url", "").split()]
    if options.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        indexes = []
    problems = []
    for index in filter(re.compile("https?://").match, indexes):  # folders are not searched
        if not (problem := _download_from(index, package, archive, target, options)):
            return
        problems.append(re.sub(r"//[^/@]*@", "//", f"{index}: {problem}"))  # without a password
    tried = "; ".join(problems) or "pip is told to use no index (no-index)"
    raise UserError(
        f"{archive} could not be downloaded ({tried}). Nothing was kept. Check the network and run the command "
        "again; pip's settings are honoured (PIP_INDEX_URL, PIP_PROXY, PIP_CERT). For a machine without a network, "
        "copy the cache folder from one that has it and point FINETUNE_CACHE to the copy."
    )


def _download_from(index: str, package: str, archive: str, target: Path, options: dict[str, str]) -> str | None:
    """Download the archive from one index; the reason in a few words where that failed."""
    retries = Retry(total=2, backoff_factor=0.5, status_forcelist=[429, 502, 503, 504], raise_on_status=False)
    progress: Callable[[int | None], Any] = partial(_show_progress, archive)
    with PyPISimple(index) as client:
        for scheme in ("http", "https"):
            client.s.mount(f"{scheme}://", HTTPAdapter(max_retries=retries))
            if options.get("proxy"):
                client.s.proxies[scheme] = options["proxy"]
        if options.get("cert"):
            client.s.verify = options["cert"]
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
            return FAILURES.get(type(error).__name__) or str(error)  # its own text is a nest of object addresses
    return None


def _pip_options() -> dict[str, str]:
    """Pip's own settings, as `pip install` would see them: files first, then this command's section, then PIP_*."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if listed.returncode != 0:  # an environment without pip: uv makes such
        names = {key: f"PIP_{key.replace('-', '_').upper()}" for key in OPTIONS}
        return {key: os.environ[name] for key, name in names.items() if name in os.environ}
    entries = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.+)$", listed.stdout, re.MULTILINE)
    entries.sort(key=lambda entry: SECTIONS.index(entry[0]))
    return {key: str(ast.literal_eval(value)) for _, key, value in entries}


@contextmanager
def _show_progress(archive: str, size: int | None) -> Iterator[SimpleNamespace]:
    """A progress bar in the form that pypi-simple wants: it calls `update` with the bytes that have come."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Fetching {archive}", total=size)
        yield SimpleNamespace(update=lambda count: bar.advance(task, count))
