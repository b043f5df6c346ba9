"""How does one exact file come out of the package index that pip is set up for?"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from finetune.errors import UserError

PYPI = "https://pypi.org/simple"
TIMEOUT_SECONDS = 30


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

    with PyPISimple(index) as client:
        _set_up(client.s, options)
        try:
            page = client.get_project_page(package, timeout=TIMEOUT_SECONDS)
            found = next((file for file in page.packages if file.filename == archive), None)
            if found is None:
                return "it does not list that file"
            client.download_package(found, target, verify=False, progress=_progress(archive), timeout=TIMEOUT_SECONDS)
        except NoSuchProjectError:
            return f"it does not know {package}"
        except HTTPError as error:
            return f"it answered {error.response.status_code}" if error.response is not None else str(error)
        except RequestException as error:
            return _plain(error)
    return None


def _set_up(session: Any, options: dict[str, str]) -> None:
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    again = Retry(total=2, backoff_factor=0.5, status_forcelist=[429, 502, 503, 504], raise_on_status=False)
    session.mount("http://", HTTPAdapter(max_retries=again))
    session.mount("https://", HTTPAdapter(max_retries=again))
    if options.get("cert"):
        session.verify = options["cert"]
    if options.get("proxy"):
        session.proxies = {"http": options["proxy"], "https": options["proxy"]}


def _plain(error: Exception) -> str:
    """The kind of network failure in words; the library's own text is a nest of object addresses."""
    kinds = {
        "SSLError": "its certificate could not be verified",
        "ProxyError": "the proxy could not be reached",
        "ConnectTimeout": "it did not answer in time",
        "ReadTimeout": "it stopped answering",
        "ChunkedEncodingError": "the download was cut off",
        "ConnectionError": "it could not be reached",
    }
    return kinds.get(type(error).__name__) or _without_password(str(error))


def _pip_options() -> dict[str, str]:
    """Pip's own settings, as `pip install` would see them: files first, then this command's section, then PIP_*."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for section, key, value in re.findall(r"^(global|install|:env:)\.([\w-]+)=(.+)$", listed.stdout, re.MULTILINE):
        sections[section][key] = str(ast.literal_eval(value))
    if listed.returncode != 0:  # an environment without pip: uv makes such
        known = ("index-url", "extra-index-url", "no-index", "cert", "proxy")
        names = {key: f"PIP_{key.replace('-', '_').upper()}" for key in known}
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


def _progress(archive: str) -> Callable[[int | None], Any]:
    """A progress bar in the form that pypi-simple wants: size -> context manager with update(bytes)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def show(size: int | None) -> Iterator[SimpleNamespace]:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(f"Fetching {archive}", total=size)
            yield SimpleNamespace(update=lambda count: bar.advance(task, count))

    return show
