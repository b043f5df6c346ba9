"""Which of a run's processes is this, and what have all of them found alike? A launcher says so in the environment."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from finetune.errors import UserError

Found = TypeVar("Found")


def process_count() -> int:
    """The number of the run's processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the first of them, which alone writes files."""
    return os.environ.get("RANK", "0") == "0"


def agree(find: Callable[[], Found]) -> Found:
    """What the first process finds, in all of them; what it raises is raised in all of them."""
    if process_count() == 1:
        return find()
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())  # joins the others
    answer: list[Found | None] = [None]
    errors: list[Exception | None] = [None]
    if is_main_process():
        try:
            answer = [find()]
        except UserError as error:
            errors = [error]
    broadcast_object_list(errors)
    if errors[0]:
        raise errors[0]
    broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]


def require_shared(file: Path, content: str) -> None:
    """Raise UserError in all processes where one of them does not see what the first has written into a file."""
    if process_count() == 1:
        return
    from accelerate.utils import gather_object

    written = agree(lambda: content)
    seen = file.exists() and file.read_text(encoding="utf-8") == written
    without = [rank for rank, sees in enumerate(gather_object([seen])) if not sees]
    if without:
        raise UserError(
            f"{file.parent}: process {without[0]} of {process_count()} does not see this folder of the first process. "
            "The processes of a run need one folder: set output_dir to one that all nodes share."
        )
