"""Which of a run's processes is this, and what have all of them found alike? A launcher says so in the environment."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
    found: list[Any] = [None, None]  # what was found, or the mistake that was
    if is_main_process():
        try:
            found[0] = find()
        except UserError as error:
            found[1] = error
    broadcast_object_list(found)
    if found[1]:
        raise found[1]
    found_by_first: Found = found[0]
    return found_by_first


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
