"""What do all trials of a sweep pay for once? Imports, rows, the base model, and what a search has tried.

warm.py calls this in the process that trials are forked from. It must not touch CUDA.
"""

import os
from contextlib import suppress

from finetune.config.schema import Config
from finetune.machine.libraries import import_trainer, silence_all
from finetune.runs.folder import run_folder


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
    """The number of CUDA devices, asked in a fork, as asking may initialise CUDA."""
    import torch

    pid = os.fork()
    if pid == 0:
        count = 0
        try:
            count = torch.cuda.device_count()
        finally:  # whatever happens, this process must not go on as its parent does
            os._exit(count)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def preload_shared(config: Config, with_base: bool) -> None:
    """Load what runs share, unless it is there: the rows and, where it fits, the base model."""
    if config.tracking.enabled:
        import wandb  # noqa: F401 (a second)
    from finetune.data.splits import load_splits
    from finetune.machine.device import choose_device
    from finetune.model import base as model
    from finetune.runs.cache_keys import base_key, rows_key
    from finetune.training import prepare

    with suppress(Exception):  # the run itself will tell
        machine = choose_device(config.model, config.quantization, config.adapter)
        rows = rows_key(config)
        if rows not in prepare.ready:
            prepare.ready.clear()
            prepare.ready[rows] = prepare.prepare_rows(config, load_splits(config.data), machine, run_folder(config))
        base = base_key(config.model, config.quantization, machine)
        if base not in model.ready and with_base:
            model.ready.clear()
            model.ready[base] = model.load_base(config.model, config.quantization, machine)


def preload_study(place: str) -> None:
    """Read a search's study up to here: what was tried is thousands of lines, and each trial is held against them."""
    from finetune.search.storage import read_ahead

    with suppress(Exception):  # the run itself will tell
        read_ahead(place)
