"""What is loaded once for all trials of a sweep? Imports, rows, the base model, and what a search has tried.

The fork server calls this. It must not touch CUDA.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.machine.libraries import import_trainer, silence_all
from finetune.runs.folder import rows_key, run_folder

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from transformers import PreTrainedModel

    from finetune.machine.device import Device
    from finetune.training.prepare import PreparedRows


@dataclass(frozen=True)
class Loaded:
    """What a run need not load itself: rows by `rows_key`, base models by `base_key`, studies by path."""

    rows: "Mapping[str, PreparedRows]" = field(default_factory=dict)
    bases: "Mapping[str, PreTrainedModel]" = field(default_factory=dict)
    studies: "Mapping[str, JournalStorage]" = field(default_factory=dict)


NOTHING_LOADED = Loaded()


def import_libraries() -> int:
    """Import what every run imports; the number of CUDA devices."""
    silence_all()
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    devices = _count_gpus()
    if devices:  # bitsandbytes, and so PEFT, asks a GPU on import what it can do: no fork could then use CUDA
        import trl.chat_template_utils
        import trl.data_utils  # noqa: F401
    else:
        import_trainer()
        from finetune.evaluation import forgetting  # noqa: F401
        from finetune.planning import plan  # noqa: F401
        from finetune.reporting import plan_table, preview, progress, report  # noqa: F401
        from finetune.training import trainer  # noqa: F401
    return devices


def _count_gpus() -> int:
    """The number of CUDA devices, counted in a fork, as counting may initialise CUDA."""
    import torch

    pid = os.fork()
    if pid == 0:
        count = 0
        try:
            count = torch.cuda.device_count()
        finally:  # whatever happens, this process must not go on as its parent does
            os._exit(count)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def with_rows(config: Config, loaded: Loaded) -> Loaded:
    """What is loaded, with the rows of a run in place of those of others."""
    from finetune.data.splits import load_splits
    from finetune.training.prepare import prepare_rows

    if (key := rows_key(config)) in loaded.rows:
        return loaded
    rows = prepare_rows(config, load_splits(config.data), _device(config), run_folder(config))
    return replace(loaded, rows={key: rows})


def without_other_bases(config: Config, loaded: Loaded) -> Loaded:
    """What is loaded, without base models that a run does not use: so that two are never held at once."""
    wanted = _base_key(config)
    return replace(loaded, bases={key: base for key, base in loaded.bases.items() if key == wanted})


def with_base(config: Config, loaded: Loaded) -> Loaded:
    """What is loaded, with the base model of a run."""
    from finetune.model.base import load_base

    base = load_base(config.model, config.quantization, _device(config), loaded.bases)
    return replace(loaded, bases={_base_key(config): base})


def with_study(path: str, loaded: Loaded) -> Loaded:
    """What is loaded, with a search's study: it may have thousands of lines, and each trial is compared with them."""
    from finetune.search.storage import read_ahead

    return replace(loaded, studies=read_ahead(path, loaded.studies))


def _device(config: Config) -> "Device":
    from finetune.machine.device import choose_device

    return choose_device(config.model, config.quantization, config.adapter)


def _base_key(config: Config) -> str:
    from finetune.model.base import base_key

    return base_key(config.model, config.quantization, _device(config))
