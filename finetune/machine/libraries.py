"""How are the libraries imported? Quietly, asking nothing of a hub that is not used, and without what takes long."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from finetune.config.harness_tasks import tasks_need_hub
from finetune.config.schema import Config, Source


def silence_libraries(config: Config) -> None:
    """Silence libraries, before they are imported, where a user can change nothing, and keep them off an unused hub."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if Source.hub not in (config.model.source, config.data.source) and not tasks_need_hub(config.eval.harness_tasks):
        os.environ["HF_HUB_OFFLINE"] = "1"
    silence_all()
    import huggingface_hub.constants

    # It may have been imported already, with another setting.
    vars(huggingface_hub.constants)["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE") == "1"


def silence_all() -> None:
    """The part of `silence_libraries` that is the same for all runs, and asks for no GPU."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when the data loader forks
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each retry warns; the error at their end is enough
    for name in ("bitsandbytes", "transformers", "trl", "peft", "accelerate", "torch.distributed", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' own deprecations of each other
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias")  # as_base_model restores them
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def import_trainer() -> None:
    """Import bitsandbytes and TRL's trainer without what each would spend a second on and nothing here uses.

    That is PyTorch's compiler, for functions of bitsandbytes that have no kernel of its own, and W&B, for model cards.
    A run that is tracked imports W&B later, one that asks for `torch_compile` the compiler.
    """
    with set_for_a_moment(os.environ, "TORCHDYNAMO_DISABLE", "1"):
        import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    with set_for_a_moment(sys.modules, "wandb", None):
        import trl.trainer.sft_trainer  # noqa: F401


@contextmanager
def set_for_a_moment(mapping: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    """Set an item of a mapping, such as `vars(module)`, for the length of the block."""
    before = {key: mapping[key]} if key in mapping else {}
    mapping[key] = value
    try:
        yield
    finally:
        del mapping[key]
        mapping.update(before)
