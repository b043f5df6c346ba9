"""Has an earlier run answered these prompts with the same base model?

Replies are kept under a hash of all that they depend on: weights, prompts and decoding, but nothing that is trained.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from finetune.data.embedded import cache_folder
from finetune.evaluation.generate import Answer
from finetune.model.base import TrainedModel, weights_digest
from finetune.runs.files import replace_file
from finetune.secrets import without_secrets

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
FORMAT = 3  # raised with each change to how answers are computed (generate.py, model/) that may round otherwise
BUSY = "another run is computing them"


@dataclass(frozen=True)
class Reply:
    """What a model makes of one prompt and its reference."""

    answer: Answer | None  # if a metric scores answers
    likelihood: tuple[float, int] | None  # for perplexity: summed negative log-likelihood in nats, number of tokens


def answering_precision(model: TrainedModel) -> str:
    """The floating-point type of matrix products, now."""
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class AnswerCache:
    """Replies of one base model on one kind of device, and the folder in which a run keeps its own, if it does."""

    base: dict[str, Any]
    kept: Path | None = None
    tell: Callable[[str], object] = print

    @classmethod
    def of(
        cls, base: PreTrainedModel, kept: Path | None = None, tell: Callable[[str], object] = print
    ) -> "AnswerCache":
        """The cache of a base model as it is loaded: its weights, configuration, where it computes, and libraries."""
        if not PartialState().is_main_process:  # which alone reads and writes the cache
            return cls({}, kept, tell)
        on_gpu = base.device.type == "cuda"
        device = torch.cuda.get_device_name(base.device) if on_gpu else torch.backends.cpu.get_cpu_capability()
        attention = base.config._attn_implementation  # private: transformers, no public name
        return cls(
            {
                "format": FORMAT,
                "weights": weights_digest(base),
                "config": base.config.to_dict() | {"_name_or_path": "", "attention": attention},
                "device": device,
                "versions": [version(name) for name in LIBRARIES],
            },
            kept,
            tell,
        )

    @property
    def weights(self) -> str:
        """The digest of the base model's weights; empty in other processes than the first."""
        return str(self.base.get("weights", ""))

    def recall(
        self, request: dict[str, Any], compute: Callable[[], list[Reply]], wait: bool
    ) -> tuple[list[Reply], bool] | None:
        """The replies, and whether from the cache; None without `wait` while another run is computing them."""
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
                return [Reply(answer and Answer(**answer), pair and tuple(pair)) for answer, pair in cached[0]], True
            replies = compute()
            if PartialState().is_main_process:
                rows = [[reply.answer and asdict(reply.answer), reply.likelihood] for reply in replies]
                if without_secrets(rows) == rows:  # a secret is not kept, and what is kept must be what was answered
                    replace_file(file, json.dumps(rows, ensure_ascii=False))
        return replies, False
