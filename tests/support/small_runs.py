"""Runs of seconds in this process, and parts of them."""

import run
from finetune.cli.compose import compose_config
from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.prompts import choose_prompts
from finetune.machine.device import choose_device
from finetune.model.base import load_base
from finetune.runs.folder import run_folder
from finetune.runs.predictions import PREDICTIONS, read_predictions
from finetune.runs.result import RESULT, read_result
from support import builds


def finished(overrides):
    """The result and the predictions of a run."""
    config = compose_config(overrides)
    run.run(config)
    folder = run_folder(config)
    return read_result(folder / RESULT), read_predictions(folder / PREDICTIONS)


def chosen(overrides):
    """A prepared run and its held-out prompts."""
    prepared = builds.prepared(overrides)
    return prepared, choose_prompts(compose_config(overrides), prepared)


def base(overrides):
    """The base model of a run."""
    config = compose_config(overrides)
    return load_base(
        config.model, config.quantization, choose_device(config.model, config.quantization, config.adapter)
    )


def ignore(*_):
    """What is called while prompts are answered, and does nothing."""


def answered(overrides, advance=ignore, show=ignore, **options):
    """The arms of a run whose model is not trained, so that the base stands for the tuned model, too."""
    prepared, prompts = chosen(overrides)
    model = base(overrides)
    return answer_prompts(prompts, model, prepared.tokenizer, {}, AnswerCache.of(model), advance, show, **options)
