"""What `python run.py OVERRIDES` builds before its first step."""

from finetune.cli.main import compose
from finetune.data import splits as data
from finetune.machine import device
from finetune.model import base as model
from finetune.runs import folder as checkpoint
from finetune.training import prepare
from finetune.training import trainer as train


def prepared(overrides):
    """The rows as they are trained on, checked."""
    config = compose(overrides)
    machine = device.choose(config.model, config.quantization, config.adapter)
    return prepare.prepare(config, data.load(config.data), machine, checkpoint.folder(config))


def trainer(overrides):
    """The trainer, with the model and the adapter loaded."""
    config = compose(overrides)
    machine = device.choose(config.model, config.quantization, config.adapter)
    rows = prepare.prepare(config, data.load(config.data), machine, checkpoint.folder(config))
    base = model.load_base(config.model, config.quantization, machine)
    return train.Trainer(model.add_adapter(base, config.adapter, config.seed), rows, [])
