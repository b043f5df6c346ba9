"""What is loaded once for all trials of a sweep? Imports, rows, the base model, and what a search has tried.

The fork server calls this. It must not touch CUDA.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.machine.libraries import import_trainer, silence_all
from finetune.runs.folder import rows_key, run_folder

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from transformers import PreTrainedModel

    from finetune.training.prepare import PreparedRows


@dataclass(frozen=True)
class Loaded:
    """What a run need not load itself: rows by `rows_key`, base models by `base_key`, studies by path."""

    rows: "dict[str, PreparedRows]" = field(default_factory=dict)
    bases: "dict[str, PreTrainedModel]" = field(default_factory=dict)
    studies: "dict[str, JournalStorage]" = field(default_factory=dict)


NOTHING_LOADED = Loaded()


def import_libraries() -> int:
    """Import what every run imports; the number of CUDA devices."""
    silence_all()
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    if (pid := os.fork()) == 0:  # counting devices may initialise CUDA
        try:
            os._exit(torch.cuda.device_count())
        finally:  # whatever happens, this process must not go on as its parent does
            os._exit(0)
    devices = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
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


def load_shared(config: Config, loaded: Loaded, on_cpu: bool, base_fits: bool) -> None:
    """Load what a run shares with others in place of what it does not use; on GPUs, where CUDA waits, the study alone.

    What cannot be loaded is left to the run itself, which reports what is wrong.
    """
    if config.sweep.study and config.sweep.pruner != "none":
        from finetune.search.storage import read_ahead

        with suppress(Exception):  # it may have thousands of lines, and each trial is compared with them
            loaded.studies.update(read_ahead(config.sweep.study, loaded.studies))
    if not on_cpu:
        return
    if config.tracking.enabled:
        import wandb  # noqa: F401 (a second)
    from finetune.data.splits import load_splits
    from finetune.machine.device import choose_device
    from finetune.model.base import base_key, load_base
    from finetune.training.prepare import prepare_rows

    with suppress(Exception):
        device = choose_device(config.model, config.quantization, config.adapter)
        if (key := rows_key(config)) not in loaded.rows:
            rows = prepare_rows(config, load_splits(config.data), device, run_folder(config))
            loaded.rows.clear()
            loaded.rows[key] = rows
        key = base_key(config.model, config.quantization, device)
        if base_fits and key not in loaded.bases:
            loaded.bases.clear()  # so that two are never held at once
            loaded.bases[key] = load_base(config.model, config.quantization, device)
