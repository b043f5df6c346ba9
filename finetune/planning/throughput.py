"""How fast does this machine go through this model? Measured on a few of its layers, without its weights."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import cycle, pairwise, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from finetune.config.schema import Source
from finetune.evaluation.generate import dequantised, generate_batch
from finetune.machine.device import Device, finish_queued_work
from finetune.model.adapter import add_adapter, as_base_model
from finetune.model.base import load_base
from finetune.planning.workload import PlannedRun, Workload
from finetune.training.flat_batch import Batch
from finetune.training.prepare import PreparedRun
from finetune.training.trainer import Trainer, mixed_precision, recompute_activations

# A probe has as many layers as hold about so many weights, and at most MOST_LAYERS.
PROBE_WEIGHTS = 60_000_000
MOST_LAYERS = 4
# On a CPU, a model whose layer and embeddings hold more than this is timed by its matrix products alone.
LARGEST_PROBE = 250_000_000
PROBE_WEIGHT = 0.01
# A call is repeated so often at least, which warms up, and at most, and no further once it took so long in all.
FEWEST_CALLS, MOST_CALLS, ENOUGH_SECONDS = 2, 4, 1.0
BUSY = 2.0  # a quarter of the same calls took so many times as long: other programs compute, too
ANSWER_TOKENS = 9  # the first is read from the prompt, each further one is timed
PART = 4  # a batch is measured once with all prompts, and once with every fourth
# Rows and columns of the matrices whose product is timed.
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
MULTIPLY_ADD = 2  # floating-point operations
# Training passes through the model forward and backward, where frozen weights need no gradients of their own.
TRAINING_PASSES = 2
BYTES_ON_DISK = 2  # of a weight
DISK_BYTES_PER_SECOND = 1e9
# Share of the speed of matrix products that one answered token at a time reaches; an assumption, and stated as one.
DECODING_SHARE = 0.1


@dataclass(frozen=True)
class Throughput:
    """Seconds for one of each."""

    load: float
    train_position: float
    forward_position: float
    update: float
    # Reading the prompts of a batch, and each further token for it: a part for the step and a part for each row.
    prefill: float = 0.0
    decode_step: float = 0.0
    decode_row: float = 0.0
    # The same of few-shot prompts.
    few_shot_prefill: float = 0.0
    few_shot_step: float = 0.0
    few_shot_row: float = 0.0
    # A step of the base model without the adapter, as a share of the tuned one's.
    untuned: float = 1.0


class Stopwatch:
    """Times calls by the fastest of a few, which other programs have slowed least, and knows how far they scattered."""

    def __init__(self) -> None:
        self.scatter = 1.0

    def seconds(self, call: Callable[[], object]) -> float:
        """The fastest of a few calls, the first of which warms up."""
        return self.seconds_of_unit(repeat((call, 1)))

    def seconds_of_unit(self, calls: Iterable[tuple[Callable[[], object], int]]) -> float:
        """Seconds for one unit of work by the fastest of a few calls, each with how many units it does."""
        taken, each = list[float](), list[float]()
        for call, units in calls:
            started = time.perf_counter()
            call()
            finish_queued_work()
            taken.append(time.perf_counter() - started)
            each.append(taken[-1] / units)
            if len(taken) == MOST_CALLS or (len(taken) >= FEWEST_CALLS and sum(taken) > ENOUGH_SECONDS):
                break
        self.compare(each[1:])
        return min(each)

    def compare(self, taken: Sequence[float]) -> None:
        """Note how far the seconds of equal work lie apart."""
        self.scatter = max(self.scatter, sorted(taken)[len(taken) * 3 // 4] / max(min(taken), 1e-9))

    @property
    def remark(self) -> str:
        """What is to be known of a machine that was busy; empty where it was not."""
        return f"; it was busy: the same took up to {self.scatter:.1f} times as long" if self.scatter > BUSY else ""


def measure_throughput(run: PlannedRun, workload: Workload, dequantises: bool) -> tuple[Throughput, str]:
    """The throughput of this machine, and in words how it was measured.

    `dequantises`: whether 4-bit weights are dequantised once for all answers.
    """
    meta_model = run.prepared.meta_model
    layers = meta_model.config.get_text_config().num_hidden_layers
    embeddings = _weights(meta_model.get_input_embeddings())
    layer = max(1, (meta_model.num_parameters() - embeddings) // layers)
    if run.machine.kind == "cpu" and layer + embeddings > LARGEST_PROBE:
        rate = matmul_rate(run.machine)
        measured = f"this machine's matrix products: {rate / 1e12:.2f} TFLOP/s, measured"
        return throughput_from_rate(run.prepared, workload, rate), measured
    most = min(layers, MOST_LAYERS, max(2, PROBE_WEIGHTS // layer))
    watch = Stopwatch()
    deep = _measure_probe(run, workload, most, dequantises, watch)
    if most == layers:
        return deep, f"a model of this shape with random weights, measured here{watch.remark}"
    shallow = _measure_probe(run, workload, 1, dequantises, watch)
    measured = f"{most} of {layers} layers with random weights, measured here{watch.remark}"
    return extrapolate_depth(shallow, deep, most, layers), measured


def extrapolate_depth(shallow: Throughput, deep: Throughput, measured: int, layers: int) -> Throughput:
    """The throughput of all `layers` from that of one and of `measured`: each further one takes as long as those."""
    pairs = zip(astuple(shallow), astuple(deep), strict=True)
    grown = Throughput(*(b + max(b - a, 0.0) / (measured - 1) * (layers - measured) for a, b in pairs))
    return replace(grown, untuned=deep.untuned)


def throughput_from_rate(prepared: PreparedRun, workload: Workload, rate: float) -> Throughput:
    """The throughput of a device that computes `rate` floating-point operations a second in matrix products."""
    meta_model = prepared.meta_model
    looked_up, head = meta_model.get_input_embeddings(), meta_model.get_output_embeddings()
    tied = head.weight is looked_up.weight
    forward = MULTIPLY_ADD * (meta_model.num_parameters() - (0 if tied else _weights(looked_up))) / rate
    answers, few_shot = workload.answers, workload.few_shot
    return Throughput(
        load=meta_model.num_parameters() * BYTES_ON_DISK / DISK_BYTES_PER_SECOND,
        train_position=TRAINING_PASSES * forward,
        forward_position=forward,
        update=0.0,
        prefill=sum(map(len, answers.first_batch)) * forward if answers else 0.0,
        decode_row=forward / DECODING_SHARE,
        few_shot_prefill=sum(map(len, few_shot.first_batch)) * forward if few_shot else 0.0,
        few_shot_row=forward / DECODING_SHARE,
    )


def matmul_rate(machine: Device) -> float:
    """Floating-point operations a second of a matrix product on this machine."""
    size = MATRIX_SIZE[machine.kind]
    matrix = torch.ones(size, size, dtype=machine.compute_dtype, device=machine.kind)
    return MULTIPLY_ADD * size**3 / Stopwatch().seconds(lambda: matrix @ matrix)


def _measure_probe(run: PlannedRun, workload: Workload, layers: int, dequantises: bool, watch: Stopwatch) -> Throughput:
    """The throughput of the run's model, were it of so many layers."""
    config, prepared = run.config, run.prepared
    with TemporaryDirectory() as folder:
        _write_probe(prepared.meta_model, run.machine, layers, Path(folder))
        probe = replace(config.model, source=Source.local, path=folder, revision=None)
        started = time.perf_counter()
        base = load_base(probe, config.quantization, run.machine)
        load = time.perf_counter() - started
    tuned = add_adapter(base, config.adapter, config.seed)
    trainer = Trainer(tuned, prepared, [])
    recompute_activations(trainer)
    optimizer = trainer.create_optimizer()
    batches = [trainer._prepare_inputs(dict(b)) for b in workload.typical]  # private: transformers, moves to the device

    def forward(batch: Batch) -> torch.Tensor:
        with mixed_precision(trainer.args):
            return trainer.compute_loss(tuned, dict(batch))

    def seconds_of_position(call: Callable[[Batch], object]) -> float:
        # Batches of other lengths: one that comes again finds the memory that it needs at its place.
        return watch.seconds_of_unit((partial(call, batch), batch["input_ids"].numel()) for batch in cycle(batches))

    tuned.train()
    train_position = seconds_of_position(lambda batch: forward(batch).backward())
    update = watch.seconds(optimizer.step)
    tuned.zero_grad(set_to_none=True)
    tuned.eval()
    with torch.no_grad():
        forward_position = seconds_of_position(forward)
    throughput = Throughput(load, train_position, forward_position, update)
    with dequantised(tuned) if dequantises else nullcontext(), mixed_precision(trainer.args):
        return _with_answers(throughput, trainer, workload, watch)


def _with_answers(throughput: Throughput, trainer: Trainer, workload: Workload, watch: Stopwatch) -> Throughput:
    """The throughput with that of answers, as far as any are asked for."""
    if workload.answers is None:
        return throughput
    prompts = workload.answers.first_batch
    prefill, token = _measure_batch(trainer, prompts, watch)
    fewer = prompts[::PART]
    _, token_of_fewer = _measure_batch(trainer, fewer, watch)
    row = (token - token_of_fewer) / (len(prompts) - len(fewer)) if len(prompts) > len(fewer) else 0.0
    row = min(max(row, 0.0), token / len(prompts))
    with as_base_model(trainer.model, {}):
        _, base_token = _measure_batch(trainer, prompts, watch)
    untuned = base_token / token if token else 1.0
    decoding = {"prefill": prefill, "decode_step": token - row * len(prompts), "decode_row": row}
    throughput = replace(throughput, **decoding, untuned=untuned)
    if not workload.few_shot:
        return throughput
    asked = workload.few_shot.first_batch
    shown = asked[::PART]
    part_prefill, token = _measure_batch(trainer, shown, watch)
    few_shot_prefill = part_prefill * _positions(asked) / _positions(shown)
    step = min(throughput.decode_step, token)
    few_shot_row = max(row, (token - step) / len(shown))  # longer prompts make a row dearer, and not the step
    return replace(throughput, few_shot_prefill=few_shot_prefill, few_shot_step=step, few_shot_row=few_shot_row)


def _measure_batch(trainer: Trainer, prompts: list[list[int]], watch: Stopwatch) -> tuple[float, float]:
    """Seconds to read the prompts, and for each further token of all answers."""
    model, tokenizer = trainer.model, trainer.processing_class
    # All weights are equal, so that all logits are and the first token is taken: no answer ends.
    never = model.config.get_text_config().vocab_size - 1
    config = GenerationConfig(do_sample=False, eos_token_id=[never], pad_token_id=tokenizer.pad_token_id)
    clock: list[float] = []

    def note_time(*_: object) -> None:
        finish_queued_work()
        clock.append(time.perf_counter())

    hook = model.get_output_embeddings().register_forward_hook(note_time)  # the last layer of each step
    reads, steps = list[float](), list[float]()
    for _ in range(FEWEST_CALLS):
        clock[:] = [time.perf_counter()]
        generate_batch(model, tokenizer, prompts, config, ANSWER_TOKENS)
        reads.append(clock[-ANSWER_TOKENS] - clock[0])
        taken = [after - before for before, after in pairwise(clock[-ANSWER_TOKENS:])]
        steps.append(median(taken))
        watch.compare(taken)
    hook.remove()
    return min(reads), min(steps)


def _write_probe(meta_model: PreTrainedModel, machine: Device, layers: int, folder: Path) -> None:
    """Write a model like `meta_model` but of so many layers, its weights all equal."""
    config = copy.deepcopy(meta_model.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    config.tie_word_embeddings = True
    with torch.device("meta"):
        probe = AutoModelForCausalLM.from_config(config, dtype=machine.weight_dtype)
    probe.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.fill_(PROBE_WEIGHT)
    probe.tie_weights()
    probe.save_pretrained(folder)


def _positions(prompts: list[list[int]]) -> int:
    return len(prompts) * max(map(len, prompts))


def _weights(layer: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
