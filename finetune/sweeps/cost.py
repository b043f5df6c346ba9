"""What will a sweep cost? The memory and the time of its trials, worked out before the first."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.config.schema import Config, UserError
from finetune.data import splits as data
from finetune.evaluation import lm_harness as harness
from finetune.machine import device
from finetune.planning import memory, plan
from finetune.planning import throughput as pace
from finetune.runs import cache_keys as alike
from finetune.runs.sweep_record import Cost
from finetune.training import prepare

# Trials are planned for so long at most; what is left is taken to cost as much as those that were planned.
PLANNING_SECONDS = 30.0
# From so many seconds of matrix products on, it is worth some seconds more to measure the first trial's own pace.
WORTH_MEASURING = 1200.0
# Characters of what is wrong with one trial.
LONGEST_MESSAGE = 1_500


def estimate(configs: Sequence[Config], trials: int) -> list[Cost | str | None]:
    """The cost of each, or what is wrong with it; None where planning took too long. Wrong tasks are told alone.

    `trials` is how many such there will be in all.
    """
    known: dict[str, Cost | str] = {}
    slower = 0.0
    found: list[Cost | str | None] = [*_wrong_tasks(configs)]
    if found:
        return found
    started = time.monotonic()
    for config in configs:
        key = alike.cost_key(config)
        if key not in known and time.monotonic() < started + PLANNING_SECONDS:
            try:
                known[key], slower = _estimate(config, slower, trials)
            except UserError as error:
                known[key] = str(error)[:LONGEST_MESSAGE]
        found.append(known.get(key))
    return found


def _wrong_tasks(configs: Sequence[Config]) -> list[str]:
    """What is wrong with the harness's tasks, whose import alone takes seconds."""
    wrong = []
    for settings in {tuple(config.eval.harness_tasks): config.eval for config in configs}.values():
        try:
            harness.choose_tasks(settings)
        except UserError as error:
            wrong.append(str(error)[:LONGEST_MESSAGE])
    return wrong


def _estimate(config: Config, slower: float, trials: int) -> tuple[Cost, float]:
    """The cost, and by how much a run is slower than its matrix products; 0 as long as nobody has measured it."""
    machine = device.choose(config.model, config.quantization, config.adapter)
    with TemporaryDirectory() as nowhere:  # for the trial may never be run
        prepared = prepare.prepare(config, data.load(config.data), machine, Path(nowhere))
        _, work, need = memory.estimate(config, prepared, machine)
        rate = (config.plan.tflops or 0) * 1e12 or pace.matrix_rate(machine)
        least = sum(plan.seconds(work, pace.state(prepared, work, rate)).values())
        if not slower and least * trials > WORTH_MEASURING and not config.plan.tflops:
            speed, _ = pace.measure(config, prepared, machine, work, need.unpacks)
            slower = sum(plan.seconds(work, speed).values()) / least
    seconds = least * (slower or 1.0)
    return Cost(seconds, need.peak, need.available, need.verdict, slower > 0 or bool(config.plan.tflops)), slower
