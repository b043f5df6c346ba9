"""A large file is read again where it is another one, and only there."""

import hashlib
import os

import pytest

from finetune.data.checksums import SMALL_BYTES, remembered_sha256


@pytest.mark.parametrize("size", [10, SMALL_BYTES + 10])
def test_the_checksum_is_that_of_the_whole_file_as_it_is_now(tmp_path, size):
    file, memory = tmp_path / "weights", tmp_path / "memory"
    content = bytearray(os.urandom(size))
    for position in (0, size // 3, size - 1):
        content[position] ^= 1
        file.write_bytes(content)
        for _ in range(2):
            assert remembered_sha256(file, memory) == hashlib.sha256(content).hexdigest()
    assert memory.exists() == (size > SMALL_BYTES)


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path):
    file, memory = tmp_path / "weights", tmp_path / "memory"
    file.write_bytes(b"x" * (SMALL_BYTES + 1))
    checksum = remembered_sha256(file, memory)
    [note] = memory.iterdir()
    note.write_text(note.read_text().replace(checksum, "remembered"))
    assert remembered_sha256(file, memory) == "remembered"
    note.write_text(note.read_text()[:9])
    assert remembered_sha256(file, memory) == checksum
