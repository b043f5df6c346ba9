"""Will a run fit, and how long will it take? Answered before the model is loaded, with what to change if not."""

import time
from dataclasses import dataclass

from finetune.errors import UserError
from finetune.evaluation.forgetting import ANSWER_TOKENS
from finetune.evaluation.generate import ROUND
from finetune.machine.allowance import GIB, Fit
from finetune.planning.memory import MemoryNeed, estimate_memory
from finetune.planning.remedies import Remedy, advise_remedies, find_remedies
from finetune.planning.throughput import Throughput, measure_throughput, throughput_from_rate
from finetune.planning.workload import PlannedRun, Workload


@dataclass(frozen=True)
class RunPlan:
    """What a run does, needs and takes."""

    workload: Workload
    layout: str
    need: MemoryNeed
    # By phase, under the names of result.json.
    seconds: dict[str, float]
    measured: str
    remedies: list[Remedy]


def make_plan(run: PlannedRun, prepare_seconds: float) -> RunPlan:
    """The plan of a run; where it will not fit, with remedies, the cheapest first."""
    started = time.perf_counter()
    trainer, workload, need = estimate_memory(run)
    prepare_seconds += time.perf_counter() - started  # the run does so too
    remedies = list(find_remedies(run, need)) if need.fit is Fit.will_not_fit else []
    if tflops := run.config.plan.tflops:
        throughput = throughput_from_rate(run.prepared, workload, tflops * 1e12)
        measured = f"{tflops:g} TFLOP/s, as stated"
    else:
        throughput, measured = measure_throughput(run, workload, need.dequantises)
    seconds = {"prepare": prepare_seconds, **estimate_seconds(workload, throughput)}
    return RunPlan(workload, trainer.layout, need, seconds, measured, remedies)


def require_memory(run: PlannedRun) -> None:
    """Raise UserError, with what to change, for a run whose peak is predicted above the memory that there is."""
    if run.config.force or run.machine.allowance.known_to_fit:
        return
    _, _, need = estimate_memory(run)
    if need.fit is Fit.will_not_fit:
        raise UserError(
            f"This run will not fit: it needs about {need.peak / GIB:.2f} GiB ({need.peak_phase}), and there are "
            f"{need.available / GIB:.2f} GiB. {advise_remedies(list(find_remedies(run, need)))} force=true runs it all "
            "the same."
        )


def estimate_seconds(workload: Workload, speed: Throughput) -> dict[str, float]:
    """Seconds by phase; the base's answers are taken to be as long as they may be, the tuned model's as references."""
    training = workload.token_positions * speed.train_position + workload.steps * speed.update
    validation = workload.validations * workload.validation_positions * speed.forward_position
    evaluation = 0.0
    if answers := workload.answers:
        longest = [answers.new_tokens] * len(answers.prompts)
        evaluation += decoding_seconds(longest, speed.decode_step, speed.decode_row) * speed.untuned
        evaluation += decoding_seconds(answers.references, speed.decode_step, speed.decode_row)
        evaluation += 2 * speed.prefill * len(answers.prompts) / len(answers.first_batch)
    if few_shot := workload.few_shot:
        decoding = decoding_seconds(few_shot.references, speed.few_shot_step, speed.few_shot_row)
        evaluation += decoding * speed.untuned
        evaluation += speed.few_shot_prefill * len(few_shot.prompts) / len(few_shot.first_batch)
    evaluation += _seconds_of_candidates(workload, speed)
    general = decoding_seconds([ANSWER_TOKENS] * workload.questions, speed.decode_step, speed.decode_row)
    evaluation += 2 * (general + workload.passages * speed.forward_position)
    return {"load": speed.load, "train": training + validation, "evaluate": evaluation}


def _seconds_of_candidates(workload: Workload, speed: Throughput) -> float:
    """Seconds to choose the best prompt and answer with it: for each answer what one takes in the mean."""
    if not workload.candidates or not workload.answers:
        return 0.0
    read = speed.prefill / sum(map(len, workload.answers.first_batch))
    if few_shot := workload.few_shot:
        read = speed.few_shot_prefill / sum(map(len, few_shot.first_batch))
    step, row = (speed.few_shot_step, speed.few_shot_row) if few_shot else (speed.decode_step, speed.decode_row)
    seconds = sum(
        decoding_seconds(asked.references, step, row) * speed.untuned + read * sum(map(len, asked.prompts))
        for asked in workload.candidates
    )
    return seconds * workload.candidate_answers / sum(len(asked.prompts) for asked in workload.candidates)


def decoding_seconds(lengths: list[int], step: float, row: float) -> float:
    """Seconds to generate answers of so many tokens; those that have ended leave every ROUND tokens.

    `step` and `row` are the seconds of a further token, for the step and for each answer in it.
    """
    alive = [sum(length > token for length in lengths) for token in range(0, max(lengths, default=0), ROUND)]
    return sum(ROUND * (step + rows * row) for rows in alive)
