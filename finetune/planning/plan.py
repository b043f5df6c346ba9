"""Will a run fit, and how long will it take? Said before the model is loaded, with what to change if it will not."""

import time
from dataclasses import dataclass, replace

from finetune.config.schema import Config
from finetune.errors import UserError
from finetune.evaluation.forgetting import ANSWER_TOKENS
from finetune.evaluation.generate import ROUND
from finetune.machine.allowance import Fit
from finetune.machine.device import Device
from finetune.planning.memory import GIB, MemoryNeed, estimate_memory
from finetune.planning.remedies import Remedy, advise_remedies, find_remedies
from finetune.planning.throughput import Throughput, measure_throughput, throughput_from_rate
from finetune.planning.workload import Workload
from finetune.training.prepare import PreparedRun

# Whether this process's run is known to fit, because its sweep was planned.
known_to_fit = False


@dataclass(frozen=True)
class RunPlan:
    """What a run does, needs and takes."""

    work: Workload
    layout: str
    need: MemoryNeed
    # By phase, under the names of result.json.
    seconds: dict[str, float]
    measured: str
    remedies: list[Remedy]


def make_plan(config: Config, prepared: PreparedRun, machine: Device, prepare_seconds: float) -> RunPlan:
    """The plan of a run; where it will not fit, with remedies, the cheapest first."""
    started = time.perf_counter()
    trainer, work, need = estimate_memory(config, prepared, machine)
    prepare_seconds += time.perf_counter() - started  # the run does so too
    remedies = list(find_remedies(config, prepared, machine, need)) if need.fit is Fit.will_not_fit else []
    if config.plan.tflops:
        speed, measured = (
            throughput_from_rate(prepared, work, config.plan.tflops * 1e12),
            f"{config.plan.tflops:g} TFLOP/s, as stated",
        )
    else:
        speed, measured = measure_throughput(config, prepared, machine, work, need.unpacks)
    return RunPlan(
        work, trainer.layout, need, {"prepare": prepare_seconds, **estimate_seconds(work, speed)}, measured, remedies
    )


def require_memory(config: Config, prepared: PreparedRun, machine: Device) -> None:
    """Raise UserError, with what to change, for a run whose peak is predicted above the memory that there is."""
    if config.force or known_to_fit:
        return
    _, _, need = estimate_memory(config, prepared, machine)
    if need.fit is Fit.will_not_fit:
        remedies = list(find_remedies(config, prepared, machine, need))
        raise UserError(
            f"This run will not fit: it needs about {need.peak / GIB:.2f} GiB ({need.peak_phase}), and there are "
            f"{need.available / GIB:.2f} GiB. {advise_remedies(remedies)} force=true runs it all the same."
        )


def estimate_seconds(work: Workload, speed: Throughput) -> dict[str, float]:
    """Seconds by phase; the base's answers are taken to be as long as they may be, the tuned model's as references."""
    training = work.cells * speed.train_cell + work.steps * speed.update
    validation = work.validations * work.validation_cells * speed.forward_cell
    answers, asked = work.answers, 0.0
    if answers:
        asked = _decoding([answers.new_tokens] * len(answers.prompts), speed) * speed.untuned
        asked += _decoding(answers.references, speed)
        asked += 2 * speed.prefill * len(answers.prompts) / answers.batch_size
    with_examples = replace(speed, decode_step=speed.few_step, decode_row=speed.few_row)
    for draw in work.few_shot:
        asked += _decoding(draw.references, with_examples) * speed.untuned
        asked += speed.few_prefill * len(draw.prompts) / draw.batch_size
    general = _decoding([ANSWER_TOKENS] * work.questions, speed) if work.questions else 0.0
    asked += 2 * (general + work.passages * speed.forward_cell)
    return {"load": speed.load, "train": training + validation, "evaluate": asked}


def _decoding(lengths: list[int], speed: Throughput) -> float:
    """Seconds to generate answers of these lengths; those that have ended leave every `generate.ROUND` tokens."""
    alive = [sum(length > token for length in lengths) for token in range(0, max(lengths), ROUND)]
    return sum(ROUND * (speed.decode_step + rows * speed.decode_row) for rows in alive)
