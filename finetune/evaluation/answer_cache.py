"""Has an earlier run answered these prompts with the same base model?

The base model's replies depend on its weights, on the prompts and on how they are decoded, never on what is trained.
They are kept in the cache folder under a hash of all they depend on, so that the runs of a sweep share them.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from finetune.data.embedded import cache_folder
from finetune.evaluation.generate import Answer
from finetune.model.base import TrainedModel, weights_digest
from finetune.runs.files import write_text

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
# Raised with each change to how answers are computed (generate.py, model/) that may round otherwise.
FORMAT = 1
BUSY = "another run is computing them"


@dataclass(frozen=True)
class Reply:
    """To one prompt: the answer, if one was asked for, and the reference's summed negative log-likelihood in nats and
    its number of tokens, if perplexity was.
    """

    answer: Answer | None
    likelihood: tuple[float, int] | None


@dataclass(frozen=True)
class AnswerCache:
    """Replies of one base model on one kind of device."""

    base: dict[str, Any]

    @classmethod
    def of(cls, base: TrainedModel) -> "AnswerCache":
        """The cache of a model as it is now: its weights, its configuration, where it computes, and the libraries."""
        if not PartialState().is_main_process:  # which alone reads and writes files
            return cls({})
        on_gpu = base.device.type == "cuda"
        device = torch.cuda.get_device_name(base.device) if on_gpu else torch.backends.cpu.get_cpu_capability()
        attention = base.config._attn_implementation  # private: transformers, no public name
        return cls(
            {
                "format": FORMAT,
                "weights": weights_digest(base),
                "config": base.config.to_dict() | {"_name_or_path": "", "attention": attention},
                "generation": base.generation_config.to_dict(),
                "device": device,
                "versions": [version(name) for name in LIBRARIES],
            }
        )

    def recall(
        self, request: dict[str, Any], compute: Callable[[], list[Reply]], wait: bool
    ) -> tuple[list[Reply], bool] | None:
        """The replies to a request and whether they were in the cache; otherwise they are computed, and kept.

        Where another run is computing them, this one waits for them, or with `wait=False` returns None.
        """
        content = json.dumps([self.base, request], sort_keys=True, default=str)
        file = cache_folder() / "base_answers" / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
        cached: list[Any] = [None]
        with ExitStack() as locks:
            if PartialState().is_main_process:
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    locks.enter_context(FileLock(file.with_suffix(".lock"), timeout=-1 if wait else 0))
                    cached = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else None]
                except Timeout:
                    cached = [BUSY]
            broadcast_object_list(cached)
            if cached[0] == BUSY:
                return None
            if cached[0] is not None:
                return [_reply(*reply) for reply in cached[0]], True
            replies = compute()
            if PartialState().is_main_process:
                rows = [[reply.answer and asdict(reply.answer), reply.likelihood] for reply in replies]
                write_text(file, json.dumps(rows, ensure_ascii=False))
        return replies, False


def _reply(answer: dict[str, Any] | None, likelihood: list[Any] | None) -> Reply:
    return Reply(Answer(**answer) if answer else None, (likelihood[0], likelihood[1]) if likelihood else None)
