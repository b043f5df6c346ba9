import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from finetune.data.embedded import Pin, cache_folder, embedded_data, embedded_model, embedded_provenance
from finetune.errors import UserError

XML = b"""<AddressCollection>
  <AddressString><AddressNumber>12</AddressNumber> <StreetName>Caf\xc3\xa9
</StreetName> <PlaceName>Reno,</PlaceName></AddressString>
</AddressCollection>"""
MEMBER = "fake-1.0/labeled.xml"
NOWHERE = "http://127.0.0.1:9/simple"
CHECKOUT = Path(__file__).parents[2]
PROGRAM = (
    "import sys, json; from finetune.data.embedded import Pin, embedded_data; "
    "print(embedded_data('fake', Pin(**json.loads(sys.argv[1]))))"
)


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index in a folder; `requests` counts what was asked for, `cut` ends a body in the middle."""

    requests: Counter[str] = Counter()
    cut = False

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.requests[Path(self.path).name] += 1
        super().do_GET()

    def copyfile(self, source, outputfile):
        body = source.read()
        outputfile.write(body[: len(body) // 2] if self.cut and self.path.endswith(".gz") else body)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A running index that serves tmp_path/index, set as pip's only one, and an empty cache."""
    handler = type("Handler", (Index,), {"requests": Counter()})
    folder = tmp_path / "index"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/simple"
    for name, value in {"INDEX_URL": url, "EXTRA_INDEX_URL": "", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def pin(index, tmp_path):
    """A small archive that the index lists, and its pin."""
    folder = tmp_path / "index/simple/fake"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "fake-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(MEMBER)
        info.size = len(XML)
        archive.addfile(info, io.BytesIO(XML))
    (folder / "index.html").write_text('<a href="fake-1.0.tar.gz">fake-1.0.tar.gz</a>')
    checksum = hashlib.sha256((folder / "fake-1.0.tar.gz").read_bytes()).hexdigest()
    return Pin("fake", "1.0", "fake-1.0.tar.gz", checksum, MEMBER, hashlib.sha256(XML).hexdigest(), "MIT")


def left_behind():
    """What lies in the cache besides the locks."""
    return [path for path in cache_folder().glob("*") if not path.name.endswith(".lock")]


def message_of(pin):
    with pytest.raises(UserError) as error:
        embedded_data("fake", pin)
    return str(error.value)


def test_a_data_set_is_fetched_checked_and_converted(pin):
    path = embedded_data("fake", pin)
    row = {
        "address": "12 Café Reno,",
        "labels": [["AddressNumber", "12"], ["StreetName", "Café"], ["PlaceName", "Reno,"]],
    }
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [row]
    assert left_behind() == [path.parent]
    assert list(path.parent.iterdir()) == [path]  # the archive is not kept


def test_a_cached_data_set_needs_no_network(pin, monkeypatch):
    path = embedded_data("fake", pin)
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PATH", "")
    assert embedded_data("fake", pin) == path


def test_a_cut_off_download_leaves_nothing_behind(pin, index):
    index.cut = True
    assert "fake-1.0.tar.gz could not be downloaded" in (message := message_of(pin))
    assert "the download was cut off). Nothing was kept" in message
    assert left_behind() == []
    index.cut = False
    assert embedded_data("fake", pin).is_file()


def test_a_wrong_checksum_of_the_archive_leaves_nothing_behind(pin):
    wrong = replace(pin, archive_sha256="0" * 64)
    assert f"its SHA-256 is {pin.archive_sha256}, expected {'0' * 64}. Nothing was kept" in message_of(wrong)
    assert left_behind() == []


def test_a_wrong_checksum_of_the_member_leaves_nothing_behind(pin):
    wrong = replace(pin, member_sha256="0" * 64)
    assert f"{MEMBER} in fake-1.0.tar.gz is not the file that was expected" in message_of(wrong)
    assert left_behind() == []


def test_no_network_is_one_paragraph_without_a_password(pin, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE.replace("//", "//user:secret@"))
    message = message_of(pin)
    assert f"fake-1.0.tar.gz could not be downloaded ({NOWHERE}: it could not be reached)" in message
    assert "PIP_INDEX_URL" in message
    assert "secret" not in message
    assert "\n" not in message
    assert left_behind() == []


def test_an_index_without_the_package_or_the_file_says_so(pin):
    assert "it does not know other" in message_of(replace(pin, package="other"))
    assert "it does not list that file" in message_of(replace(pin, archive="fake-2.0.tar.gz"))


def test_pip_told_to_use_no_index_is_obeyed(pin, index, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "pip is told to use no index" in message_of(pin)
    assert not index.requests


def test_the_second_index_is_asked_where_the_first_has_nothing(pin, monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nothing {os.environ['PIP_INDEX_URL']}")
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    assert embedded_data("fake", pin).is_file()


def test_a_cache_that_cannot_be_written_is_an_error(pin, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file/cache"))
    assert "set FINETUNE_CACHE to a folder that you can write to" in message_of(pin)


def test_what_a_killed_process_left_is_removed(pin):
    scratch = cache_folder() / f".fake-1.0-{pin.archive_sha256[:8]}.partial"
    (scratch / "complete").mkdir(parents=True)
    (scratch / "complete/fake.jsonl").write_text("half")
    assert embedded_data("fake", pin).read_text() != "half"
    assert not scratch.exists()


def test_two_processes_at_once_fetch_once(pin, index):
    command = [sys.executable, "-c", PROGRAM, json.dumps(asdict(pin))]
    started = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert paths == {str(embedded_data("fake", pin))}
    assert index.requests["fake-1.0.tar.gz"] == 1


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"Nothing named usadress is embedded. Did you mean usaddress\?"):
        embedded_data("usadress")


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("FINETUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "finetune"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache/finetune"
    monkeypatch.setenv("FINETUNE_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"


def test_the_embedded_addresses_are_all_there():
    rows = [json.loads(line) for line in embedded_data("usaddress").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1513
    assert len({label for row in rows for label, _ in row["labels"]}) == 29
    assert all(row["address"] == " ".join(token for _, token in row["labels"]) for row in rows)


def test_the_embedded_model_is_plain_safetensors_with_its_tokenizer():
    folder = embedded_model("smollm2_135m")
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in folder.iterdir()
    }
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_provenance_names_version_checksum_and_licence():
    record = embedded_provenance("smollm2_135m")
    assert record["version"] == "0.1.2"
    assert record["licence"] == "Apache-2.0"
    assert len(record["archive_sha256"]) == len(record["member_sha256"]) == 64
