"""What will a sweep cost? The memory and the time of its trials, worked out before the first."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.config.schema import Config
from finetune.data.splits import load_splits
from finetune.errors import UserError
from finetune.evaluation.lm_harness import load_harness_tasks
from finetune.machine.device import choose_device
from finetune.planning.memory import estimate_memory
from finetune.planning.plan import estimate_seconds
from finetune.planning.throughput import matmul_rate, measure_throughput, throughput_from_rate
from finetune.runs.cache_keys import cost_key
from finetune.sweeps.jobs import TrialCost
from finetune.training.prepare import prepare_run

# Trials are planned for so long at most; what is left is taken to cost as much as those that were planned.
PLANNING_SECONDS = 30.0
# From so many seconds of matrix products on, it is worth some seconds more to measure the first trial's own pace.
WORTH_MEASURING = 1200.0
# Characters of what is wrong with one trial.
LONGEST_MESSAGE = 1_500


def estimate_costs(configs: Sequence[Config], trials: int) -> list[TrialCost | str | None]:
    """The cost of each, or what is wrong with it; None where planning took too long. Wrong tasks are told alone.

    `trials` is how many such there will be in all.
    """
    known: dict[str, TrialCost | str] = {}
    slower = 0.0
    found: list[TrialCost | str | None] = [*_wrong_tasks(configs)]
    if found:
        return found
    started = time.monotonic()
    for config in configs:
        key = cost_key(config)
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
            load_harness_tasks(settings)
        except UserError as error:
            wrong.append(str(error)[:LONGEST_MESSAGE])
    return wrong


def _estimate(config: Config, slower: float, trials: int) -> tuple[TrialCost, float]:
    """The cost, and by how much a run is slower than its matrix products; 0 as long as nobody has measured it."""
    machine = choose_device(config.model, config.quantization, config.adapter)
    with TemporaryDirectory() as nowhere:  # for the trial may never be run
        prepared = prepare_run(config, load_splits(config.data), machine, Path(nowhere))
        _, work, need = estimate_memory(config, prepared, machine)
        rate = (config.plan.tflops or 0) * 1e12 or matmul_rate(machine)
        least = sum(estimate_seconds(work, throughput_from_rate(prepared, work, rate)).values())
        if not slower and least * trials > WORTH_MEASURING and not config.plan.tflops:
            speed, _ = measure_throughput(config, prepared, machine, work, need.unpacks)
            slower = sum(estimate_seconds(work, speed).values()) / least
    seconds = least * (slower or 1.0)
    return TrialCost(seconds, need.peak, need.available, need.fit, slower > 0 or bool(config.plan.tflops)), slower
