"""What is the SHA-256 of a file, and must a large one be read again to know it?"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

SMALL_BYTES = 2**20  # a file up to here is read each time
SLOW_BYTES = 2**30  # from here on, reading a file takes seconds, and a line says so


def sha256_of_file(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path, memory: Path) -> str:
    """SHA-256 in hexadecimal; that of a large file is kept in the folder `memory` for as long as the file is the same.

    It is the same while its path, size, inode and times of change are.
    """
    file = path.resolve()
    facts = file.stat()
    if facts.st_size <= SMALL_BYTES:
        return sha256_of_file(file)
    state = [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]
    note = memory / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    with suppress(FileNotFoundError, ValueError):  # ValueError: a crash of the machine may have cut it off
        known_state, checksum = json.loads(note.read_text(encoding="utf-8"))
        if known_state == state:
            return str(checksum)
    if facts.st_size >= SLOW_BYTES:
        print(
            f"Reading {file.name} ({facts.st_size / 1e9:.1f} GB) once, to know its weights again ...", file=sys.stderr
        )
    checksum = sha256_of_file(file)
    memory.mkdir(parents=True, exist_ok=True)
    unfinished = note.with_name(f".{note.name}.{os.getpid()}")
    unfinished.write_text(json.dumps([state, checksum]), encoding="utf-8")
    unfinished.replace(note)
    return checksum
