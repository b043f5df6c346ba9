"""How fast does this machine go through this model? Measured on a few of its layers, without its weights."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from finetune.config.schema import Config, Model, Source
from finetune.evaluation.generate import dequantised, generate_batch
from finetune.machine.device import Device
from finetune.model.adapter import add_adapter, as_base_model
from finetune.model.base import load_base
from finetune.planning.workload import AnswerWorkload, Workload
from finetune.training.prepare import PreparedRun
from finetune.training.trainer import Trainer, mixed_precision, recompute_activations

# A probe has as many layers as hold about so many weights, and at most MOST_LAYERS.
PROBE_WEIGHTS = 60_000_000
MOST_LAYERS = 8
# On a CPU, a model whose layer and embeddings hold more than this is timed by its matrix products alone.
LARGEST_PROBE = 250_000_000
REPEATS = 3
ENOUGH_SECONDS = 1.0  # calls that took so long are not repeated
DECODED = 12
# Share of the speed of matrix products that one answered token at a time reaches; an assumption, and said to be one.
DECODING_SHARE = 0.1


@dataclass(frozen=True)
class Throughput:
    """Seconds for one of each."""

    load: float
    train_cell: float
    forward_cell: float
    update: float
    # Reading the prompts of a batch, and each further token for it: a part for the step and a part for each row.
    prefill: float = 0.0
    decode_step: float = 0.0
    decode_row: float = 0.0
    # The same of few-shot prompts.
    few_prefill: float = 0.0
    few_step: float = 0.0
    few_row: float = 0.0
    # A step of the base model without the adapter, as a share of the tuned one's.
    untuned: float = 1.0


def measure_throughput(
    config: Config, prepared: PreparedRun, machine: Device, work: Workload, unpacks: bool
) -> tuple[Throughput, str]:
    """The pace of this machine, and in words how it was measured.

    `unpacks`: whether 4-bit weights are dequantised once for all answers.
    """
    layers = prepared.outline.config.get_text_config().num_hidden_layers
    outside = prepared.outline.get_input_embeddings().weight.numel()
    layer = max(1, (prepared.outline.num_parameters() - outside) // layers)
    if machine.kind == "cpu" and layer + outside > LARGEST_PROBE:
        rate = matmul_rate(machine)
        return throughput_from_rate(
            prepared, work, rate
        ), f"this machine's matrix products: {rate / 1e12:.2f} TFLOP/s, measured"
    most = min(layers, MOST_LAYERS, max(2, PROBE_WEIGHTS // layer))
    many = _probe(config, prepared, machine, work, most, unpacks)
    if most == layers:
        return many, "a model of this shape with random weights, measured here"
    few = _probe(config, prepared, machine, work, 1, unpacks)
    pairs = zip(astuple(few), astuple(many), strict=True)
    grown = Throughput(*(b + max(b - a, 0.0) / (most - 1) * (layers - most) for a, b in pairs))
    return replace(grown, untuned=many.untuned), f"{most} of {layers} layers with random weights, measured here"


def throughput_from_rate(prepared: PreparedRun, work: Workload, rate: float) -> Throughput:
    """The pace of a device that computes `rate` floating-point operations a second in matrix products."""
    outline = prepared.outline
    head = outline.get_output_embeddings().weight.numel()
    body = outline.num_parameters() - outline.get_input_embeddings().weight.numel()
    forward = 2 * (body + head) / rate
    answers = work.answers
    return Throughput(
        load=outline.num_parameters() * 2 / 1e9,  # a disk of 1 GB/s
        train_cell=2 * forward,
        forward_cell=forward,
        update=0.0,
        prefill=sum(map(len, answers.prompts[: answers.batch_size])) * forward if answers else 0.0,
        decode_row=forward / DECODING_SHARE,
        few_prefill=sum(map(len, work.few_shot[0].prompts)) * forward if work.few_shot else 0.0,
        few_row=forward / DECODING_SHARE,
    )


def matmul_rate(machine: Device) -> float:
    """Floating-point operations a second of a matrix product on this machine."""
    size = 1024 if machine.kind == "cpu" else 8192
    one = torch.ones(size, size, dtype=machine.compute_dtype, device=machine.kind)
    return 2 * size**3 / _seconds(lambda: one @ one)


def _probe(
    config: Config, prepared: PreparedRun, machine: Device, work: Workload, layers: int, unpacks: bool
) -> Throughput:
    with TemporaryDirectory() as folder:
        _write(prepared.outline, machine, layers, Path(folder))
        place = Model(
            "probe",
            Source.local,
            folder,
            attn_implementation=config.model.attn_implementation,
            trust_remote_code=config.model.trust_remote_code,
        )
        started = time.perf_counter()
        base = load_base(place, config.quantization, machine)
        load = time.perf_counter() - started
    tuned = add_adapter(base, config.adapter, config.seed)
    trainer = Trainer(tuned, prepared, [])
    recompute_activations(trainer)
    optimizer = trainer.create_optimizer()
    inputs = trainer._prepare_inputs(dict(work.typical))
    cells = inputs["input_ids"].numel()

    def forward() -> Any:
        with mixed_precision(trainer.args):
            return trainer.compute_loss(tuned, dict(inputs))

    tuned.train()
    train_cell = _seconds(lambda: forward().backward()) / cells
    update = _seconds(optimizer.step)
    tuned.zero_grad(set_to_none=True)
    tuned.eval()
    with torch.no_grad():
        forward_cell = _seconds(forward) / cells
    pace = Throughput(load, train_cell, forward_cell, update)
    if work.answers is None:
        return pace
    with dequantised(tuned) if unpacks else nullcontext():
        plain = _with_answers(pace, tuned, prepared.tokenizer, work.answers)
        if not work.few_shot:
            return plain
        few = _with_answers(pace, tuned, prepared.tokenizer, work.few_shot[0])
    return replace(plain, few_prefill=few.prefill, few_step=few.decode_step, few_row=few.decode_row)


def _with_answers(pace: Throughput, tuned: Any, tokenizer: Any, answers: AnswerWorkload) -> Throughput:
    rows = answers.prompts[: answers.batch_size]
    few = rows[: max(1, len(rows) // 4)]
    # without contents no answer ends: every logit is alike, and the first token is taken
    never = tuned.config.get_text_config().vocab_size - 1
    config = GenerationConfig(do_sample=False, eos_token_id=[never], pad_token_id=tokenizer.pad_token_id)

    def decode(prompts: list[list[int]], tokens: int) -> float:
        return _seconds(lambda: generate_batch(tuned, tokenizer, prompts, config, tokens))

    def step(prompts: list[list[int]]) -> tuple[float, float]:
        """Seconds to read the prompts, and for each further token."""
        short, long = decode(prompts, 2), decode(prompts, 2 + DECODED)
        each = max(long - short, 0.0) / DECODED
        return max(short - 2 * each, 0.0), each

    (prefill, many), (_, less) = step(rows), step(few)
    row = (many - less) / (len(rows) - len(few)) if len(rows) > len(few) else 0.0
    row = min(max(row, 0.0), many / len(rows))
    with as_base_model(tuned, {}) if hasattr(tuned, "disable_adapter") else nullcontext():
        _, untuned = step(rows)
    return Throughput(
        pace.load,
        pace.train_cell,
        pace.forward_cell,
        pace.update,
        prefill,
        many - row * len(rows),
        row,
        untuned=untuned / many if many else 1.0,
    )


def _write(outline: Any, machine: Device, layers: int, folder: Path) -> None:
    """A model like `outline` but of fewer layers, its weights all alike."""
    config = copy.deepcopy(outline.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    config.tie_word_embeddings = True
    with torch.device("meta"):
        cut = AutoModelForCausalLM.from_config(config, dtype=machine.weight_dtype)
    cut.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.fill_(0.01)
    cut.tie_weights()
    cut.save_pretrained(folder)


def _seconds(call: Callable[[], Any]) -> float:
    """The mean of a few calls, after one that warms up."""
    call()
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    calls = 0
    while calls < REPEATS and time.perf_counter() < started + ENOUGH_SECONDS:
        call()
        wait()
        calls += 1
    return (time.perf_counter() - started) / calls
