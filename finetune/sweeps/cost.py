"""What will a sweep cost? The memory and the time of its trials, estimated before the first."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.config.schema import Config
from finetune.data.splits import load_splits
from finetune.errors import UserError
from finetune.evaluation.lm_harness import load_harness_tasks
from finetune.machine.allowance import Allowance
from finetune.machine.device import choose_device
from finetune.planning.memory import estimate_memory
from finetune.planning.plan import estimate_seconds
from finetune.planning.throughput import matmul_rate, measure_throughput, throughput_from_rate
from finetune.planning.workload import plan_prompts
from finetune.runs.folder import cost_key
from finetune.sweeps.fork_client import TrialCost
from finetune.training.prepare import prepare_run

# All trials together are planned for so long at most, or for so long each if that is more; those that are left are
# taken to cost as much as those that were planned.
PLANNING_SECONDS, PLANNING_SECONDS_EACH = 30.0, 1.5
WORTH_MEASURING = 1200.0  # seconds of matrix products; measuring the first trial's throughput takes some seconds more
TERA = 1e12


def estimate_costs(configs: Sequence[Config], trials: int, allowance: Allowance) -> list[TrialCost | str | None]:
    """What each of the runs costs, `trials` in all, or what is wrong, tasks alone first; None where time was short."""
    if wrong_tasks := _wrong_tasks(configs):
        return [*wrong_tasks]
    costs: dict[str, TrialCost | str] = {}
    slowdown = 0.0
    limit = time.monotonic() + max(PLANNING_SECONDS, PLANNING_SECONDS_EACH * len(configs))
    keys = [cost_key(config) for config in configs]
    for key, config in zip(keys, configs, strict=True):
        if key not in costs and time.monotonic() < limit:
            try:
                costs[key], slowdown = _estimate(config, slowdown, trials, allowance)
            except UserError as error:
                costs[key] = str(error)
    return [costs.get(key) for key in keys]


def _wrong_tasks(configs: Sequence[Config]) -> list[str]:
    """What is wrong with the harness's tasks, whose import alone takes seconds."""
    wrong = []
    for settings in {tuple(config.eval.harness_tasks): config.eval for config in configs}.values():
        try:
            load_harness_tasks(settings)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def _estimate(config: Config, slowdown: float, trials: int, allowance: Allowance) -> tuple[TrialCost, float]:
    """The cost, and by how much a run is slower than its matrix products; 0 until that is measured."""
    machine = choose_device(config.model, config.quantization, config.adapter, allowance)
    with TemporaryDirectory() as folder:  # for the trial may never be run
        prepared = prepare_run(config, load_splits(config.data), machine, Path(folder))
        run = plan_prompts(config, prepared, machine)
        _, workload, need = estimate_memory(run)
        stated = config.plan.tflops
        rate = stated * TERA if stated else matmul_rate(machine)
        seconds = sum(estimate_seconds(workload, throughput_from_rate(prepared, workload, rate)).values())
        if not slowdown and seconds * trials > WORTH_MEASURING and not stated:
            throughput, _ = measure_throughput(run, workload, need.dequantises)
            slowdown = sum(estimate_seconds(workload, throughput).values()) / seconds
    measured = slowdown > 0 or bool(stated)
    return TrialCost(seconds * (slowdown or 1.0), need.peak, need.available, need.fit, measured), slowdown
