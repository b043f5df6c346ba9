"""What `python run.py OVERRIDES` builds before its first step."""

from finetune.cli.compose import compose_config
from finetune.data.splits import load_splits
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
from finetune.runs.folder import run_folder
from finetune.training.prepare import prepare_run
from finetune.training.trainer import Trainer


def prepared(overrides):
    """The rows as they are trained on, checked."""
    config = compose_config(overrides)
    machine = choose_device(config.model, config.quantization, config.adapter)
    return prepare_run(config, load_splits(config.data), machine, run_folder(config))


def trainer(overrides):
    """The trainer, with the model and the adapter loaded."""
    config = compose_config(overrides)
    machine = choose_device(config.model, config.quantization, config.adapter)
    rows = prepare_run(config, load_splits(config.data), machine, run_folder(config))
    base = load_base(config.model, config.quantization, machine)
    return Trainer(add_adapter(base, config.adapter, config.seed), rows, [])
