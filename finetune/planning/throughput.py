"""How fast does this machine go through this model? Measured on a few of its layers, without its weights."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from finetune.config.schema import Source
from finetune.evaluation.generate import dequantised, generate_batch
from finetune.machine.device import Device, finish_queued_work
from finetune.model.adapter import add_adapter, as_base_model
from finetune.model.base import load_base
from finetune.planning.workload import PlannedRun, Workload
from finetune.training.prepare import PreparedRun
from finetune.training.trainer import Trainer, mixed_precision, recompute_activations

# A probe has as many layers as hold about so many weights, and at most MOST_LAYERS.
PROBE_WEIGHTS = 60_000_000
MOST_LAYERS = 8
# On a CPU, a model whose layer and embeddings hold more than this is timed by its matrix products alone.
LARGEST_PROBE = 250_000_000
PROBE_WEIGHT = 0.01
# A call is repeated so often at least, which warms up, and at most, and no further once it took so long in all.
FEWEST_CALLS, MOST_CALLS, ENOUGH_SECONDS = 2, 4, 1.0
BUSY = 2.0  # the same call took so many times as long: other programs compute, too
# Answers are decoded to SHORT_ANSWER tokens and to so many more; the difference is what a token takes.
SHORT_ANSWER = 2
MORE_TOKENS = 12
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
        taken: list[float] = []
        while len(taken) < FEWEST_CALLS or (len(taken) < MOST_CALLS and sum(taken) < ENOUGH_SECONDS):
            started = time.perf_counter()
            call()
            finish_queued_work()
            taken.append(time.perf_counter() - started)
        repeated = taken[1:]
        self.scatter = max(self.scatter, max(repeated) / max(min(repeated), 1e-9))
        return min(taken)

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
    body = meta_model.num_parameters() - _weights(meta_model.get_input_embeddings())
    forward = MULTIPLY_ADD * (body + _weights(meta_model.get_output_embeddings())) / rate
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
    inputs = trainer._prepare_inputs(dict(workload.typical))  # private: transformers, moves a batch to the device
    positions = inputs["input_ids"].numel()

    def forward() -> torch.Tensor:
        with mixed_precision(trainer.args):
            return trainer.compute_loss(tuned, dict(inputs))

    tuned.train()
    train_position = watch.seconds(lambda: forward().backward()) / positions
    update = watch.seconds(optimizer.step)
    tuned.zero_grad(set_to_none=True)
    tuned.eval()
    with torch.no_grad():
        forward_position = watch.seconds(forward) / positions
    throughput = Throughput(load, train_position, forward_position, update)
    with dequantised(tuned) if dequantises else nullcontext(), mixed_precision(trainer.args):
        return _with_answers(throughput, trainer, workload, watch)


def _with_answers(throughput: Throughput, trainer: Trainer, workload: Workload, watch: Stopwatch) -> Throughput:
    """The throughput with that of answers, as far as any are asked for."""
    if workload.answers is None:
        return throughput
    prompts = workload.answers.first_batch
    prefill, token = _measure_batch(trainer, prompts, watch)
    fewer = prompts[: max(1, len(prompts) // 4)]
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
    shown = workload.few_shot.first_batch
    few_shot_prefill, few_shot_token = _measure_batch(trainer, shown, watch)
    few_shot_row = min(row, few_shot_token / len(shown))  # longer prompts make a step longer, not a row dearer
    step = few_shot_token - few_shot_row * len(shown)
    return replace(throughput, few_shot_prefill=few_shot_prefill, few_shot_step=step, few_shot_row=few_shot_row)


def _measure_batch(trainer: Trainer, prompts: list[list[int]], watch: Stopwatch) -> tuple[float, float]:
    """Seconds to read the prompts, and for each further token of all answers."""
    model, tokenizer = trainer.model, trainer.processing_class
    # All weights are equal, so that all logits are and the first token is taken: no answer ends.
    never = model.config.get_text_config().vocab_size - 1
    config = GenerationConfig(do_sample=False, eos_token_id=[never], pad_token_id=tokenizer.pad_token_id)
    answer = partial(generate_batch, model, tokenizer, prompts, config)
    short, long = (watch.seconds(partial(answer, tokens)) for tokens in (SHORT_ANSWER, SHORT_ANSWER + MORE_TOKENS))
    step = max(long - short, 0.0) / MORE_TOKENS
    return max(short - SHORT_ANSWER * step, 0.0), step


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


def _weights(layer: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
