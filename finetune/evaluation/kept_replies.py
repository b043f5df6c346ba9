"""What has this run replied before it died? Replies are kept as they come, so that only the rest is computed again."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from finetune.model.adapter import trained_parameters
from finetune.secrets import without_secrets


class KeptReplies:
    """A file of replies to some prompts by one model, which is added to; None for the file: nothing is kept.

    Each line is `checksum JSON`. What follows a line that is not as it was written is not read, and written anew.
    """

    def __init__(self, file: Path | None) -> None:
        self.file, self.known = file, dict[str, Any]()
        if not file or not file.exists():
            return
        whole = 0
        for line in file.read_bytes().splitlines(keepends=True):
            checksum, _, text = line.partition(b" ")
            if not line.endswith(b"\n") or checksum != _checksum(text):
                break
            key, replies = json.loads(text)
            self.known[key], whole = replies, whole + len(line)
        os.truncate(file, whole)

    def recall(self, kind: str, rows: Sequence[int], compute: Callable[[], list[Any]]) -> list[Any]:
        """Plain values for some rows: those that are kept or, computed now, those that are kept from now on."""
        key = f"{kind} {' '.join(map(str, rows))}"
        if key not in self.known:
            replies = compute()
            if not self.file or without_secrets(replies) != replies:  # a secret is not kept
                return replies
            self.known[key] = replies
            text = json.dumps([key, replies], ensure_ascii=False).encode() + b"\n"
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as lines:
                lines.write(_checksum(text) + b" " + text)
                lines.flush()
                os.fsync(lines.fileno())
        return list(self.known[key])


def open_replies(folder: Path | None, model: torch.nn.Module, request: object, is_base: bool) -> KeptReplies:
    """This process's replies of a model, tuned or as the base, to a request, which is all else that decides them."""
    if folder is None:
        return KeptReplies(None)
    trained = "" if is_base else _digest(model)
    content = json.dumps([request, trained], sort_keys=True, default=str)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return KeptReplies(folder / f"{name}_{PartialState().process_index}.jsonl")


def _digest(model: torch.nn.Module) -> str:
    """SHA-256 over what is trained, as it is now."""
    digest = hashlib.sha256()
    for name, weight in sorted(trained_parameters(model).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(text: bytes) -> bytes:
    return f"{zlib.crc32(text):08x}".encode()
