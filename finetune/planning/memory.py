"""How much memory does a run need at its peak, and for what?

A run has phases: training steps, of which the longest batch counts, validation, and answers. The tensors that are alive
in each are counted on a meta model (meta_model.py). What stays through all phases is added: weights and optimizer.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from finetune.config.schema import Config, Quantization
from finetune.evaluation.generate import prefix_cache
from finetune.machine.allowance import GIB, Fit, assess_fit
from finetune.machine.process_memory import available_memory_bytes, held_memory_bytes, release_freed_memory
from finetune.model.adapter import trained_base_weights
from finetune.model.base import TRAINED_PARTS, TrainedModel
from finetune.planning.meta_model import Parts, build_meta_model, peak_tensor_bytes
from finetune.planning.workload import AnswerBatch, AnswerWorkload, PlannedRun, Workload, measure_workload
from finetune.training.flat_batch import Batch
from finetune.training.trainer import Trainer, mixed_precision, recompute_activations

# On a CPU: what libraries map and keep once a model computes, and what the heap holds for every byte that is alive in
# it, which is more where batches of ever other lengths are also cast to a smaller type. Both are measured, see
# benchmarks/plan_accuracy.py.
LIBRARY_BYTES = 470 * 2**20
HEAP_PER_BYTE, HEAP_PER_BYTE_MIXED = 1.4, 1.7
FLOAT32_BYTES = 4
# Bytes that an optimizer keeps for each trained value, by the beginning of its name; AdamW's two float32 if none fits.
OPTIMIZER_BYTES = {"sgd": 0, "adafactor": 0, "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion": 4}
ADAMW_BYTES = 2 * FLOAT32_BYTES
# bitsandbytes: 4-bit values in a byte, values that share a constant, and constants that share one when quantised too.
VALUES_PER_BYTE = 2
ABSMAX_BLOCK = 64
NESTED_BLOCK = 256


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes of each phase by what they are for, and how many may be used."""

    phases: dict[str, Parts]
    available: int
    # Bytes that the process holds before the model is loaded.
    held: int
    # Prompts in the batch of answers that needs most.
    answered_at_a_time: int

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.bytes_of)

    @property
    def peak(self) -> int:
        """Bytes of the phase that needs most."""
        return self.bytes_of(self.peak_phase)

    @property
    def fit(self) -> Fit:
        """`fits`, `tight` or `will not fit`."""
        return assess_fit(self.peak, self.available)

    @property
    def dequantises(self) -> bool:
        """Whether 4-bit weights are dequantised once for all answers, as these then have room below the peak."""
        answers, step = self.phases.get("answers", {}), self.phases["training step"]
        return answers.get("dequantisation", 0) > step["dequantisation"]

    def bytes_of(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())


def estimate_memory(run: PlannedRun, held: int | None = None) -> tuple[Trainer, Workload, MemoryNeed]:
    """The trainer of a run around a meta model, what it has to do, and the memory that it needs.

    `held` are the bytes that the process holds already, by default what it does hold.
    """
    release_freed_memory()
    held = held_memory_bytes(run.machine.allowance) if held is None else held
    trainer = Trainer(build_meta_model(run.prepared.meta_model, run.config, run.machine), run.prepared, [])
    recompute_activations(trainer)
    workload = measure_workload(run, trainer)
    available = round((run.config.plan.memory_gib or 0) * GIB) or available_memory_bytes(run.machine.allowance)
    phases, answered_at_a_time = _phases(run.config, trainer, workload, held)
    return trainer, workload, MemoryNeed(phases, available, held, answered_at_a_time)


def _phases(config: Config, trainer: Trainer, workload: Workload, held: int) -> tuple[dict[str, Parts], int]:
    """The bytes of each phase at its worst moment, and the prompts that are then answered together."""
    model, on_cpu = trainer.model, trainer.args.device.type == "cpu"
    constant = weight_bytes(model, config.quantization)
    if on_cpu:
        copies = sum(map(_bytes, trained_base_weights(model).values()))
        constant = {"Python and libraries": held + LIBRARY_BYTES, **constant, "copies": copies}
    trained = trained_bytes(model, str(trainer.args.optim))
    kept = ("optimizer", "gradients") if trainer.args.gradient_accumulation_steps > 1 else ("optimizer",)

    mixed = trainer.args.bf16 or trainer.args.fp16
    heap = (HEAP_PER_BYTE_MIXED if mixed else HEAP_PER_BYTE) if on_cpu else 1.0

    def phase(alive: Parts) -> Parts:
        scaled = {part: round(size * heap) for part, size in alive.items()}
        return constant | {part: trained[part] for part in kept} | scaled

    steps = [phase(batch_bytes(trainer, batch, train=True)) for batch in workload.largest]
    phases = {"training step": max(steps, key=_total), "optimizer step": constant | trained}
    if workload.largest_validation:
        phases["validation"] = phase(batch_bytes(trainer, workload.largest_validation, train=False))
    if not workload.answers:
        return phases, 0
    batches = _largest_batches([*filter(None, (workload.answers, workload.few_shot)), *workload.candidates])
    needs = [(phase(answering_bytes(model, batch, workload.answers.new_tokens)), batch.rows) for batch in batches]
    answers, rows = max(needs, key=lambda need: _total(need[0]))
    if on_cpu:
        answers["copies"] *= 2  # the base's, and what was trained while the base answers
    if on_cpu and config.quantization.load_in_4bit:
        dequantised = sum(map(_bytes, _quantised(model).values()))
        if _total(answers) + dequantised < max(map(_total, phases.values())):  # as answer_prompts decides, too
            answers["dequantisation"] = dequantised
    return phases | {"answers": answers}, rows


def _largest_batches(answers: list[AnswerWorkload]) -> set[AnswerBatch]:
    """The batch with the largest cache and, where that is another, the one with the most to read."""

    def cached(batch: AnswerBatch) -> int:
        return batch.rows * (batch.longest + answers[0].new_tokens)

    def read(batch: AnswerBatch) -> tuple[int, int]:
        return batch.rows * (batch.longest - batch.prefix), cached(batch)

    batches = [batch for workload in answers for batch in workload.batches]
    return {max(batches, key=cached), max(batches, key=read)}


def weight_bytes(tuned: TrainedModel, quantization: Quantization) -> Parts:
    """Bytes of the base's weights as they are stored, of the adapter, and of the largest matrix when dequantised."""
    quantised = _quantised(tuned) if quantization.load_in_4bit or quantization.load_in_8bit else {}
    parts: Counter[str] = Counter(weights=0, adapter=0)
    for name, parameter in tuned.named_parameters():
        if any(part in name for part in TRAINED_PARTS):
            parts["adapter"] += _bytes(parameter)
        elif id(parameter) in quantised:
            parts["weights"] += _quantised_bytes(parameter, quantization)
        else:
            parts["weights"] += _bytes(parameter)
    parts["dequantisation"] = max(map(_bytes, quantised.values()), default=0)
    return dict(parts)


def _quantised(tuned: TrainedModel) -> dict[int, torch.Tensor]:
    """The weights that are stored in 4 or 8 bits, by their identity: those of all linear layers but the head."""
    head = tuned.get_output_embeddings()
    return {
        id(module.weight): module.weight
        for name, module in tuned.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
    }


def trained_bytes(tuned: TrainedModel, optimizer: str) -> Parts:
    """Bytes of the gradients and of the optimizer's state."""
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    state = next((size for name, size in OPTIMIZER_BYTES.items() if optimizer.startswith(name)), ADAMW_BYTES)
    return {"gradients": sum(map(_bytes, trained)), "optimizer": sum(p.numel() for p in trained) * state}


def batch_bytes(trainer: Trainer, batch: Batch, train: bool) -> Parts:
    """The most that is alive at once in a training step or, without `train`, while the batch is scored.

    That is activations, logits, and gradients as far as they exist.
    """

    def compute() -> None:
        with torch.set_grad_enabled(train), mixed_precision(trainer.args):
            loss = trainer.compute_loss(trainer.model, dict(batch))
        if train:
            loss.backward()

    trainer.model.train(train)
    parts = peak_tensor_bytes(trainer.model, compute)
    trainer.model.zero_grad(set_to_none=True)
    return parts


def answering_bytes(tuned: TrainedModel, batch: AnswerBatch, new_tokens: int) -> Parts:
    """The most that is alive at once while prompts are read, with room in the cache for whole answers."""
    prefix = max(batch.prefix, 1)
    rest = batch.rows, max(batch.longest - prefix, 1)

    def read() -> None:
        with torch.no_grad():
            cache = prefix_cache(tuned, [0] * prefix, batch.rows, batch.longest + new_tokens)
            ids = torch.zeros(rest, dtype=torch.long, device=tuned.device)
            tuned(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.float()

    tuned.eval()
    return peak_tensor_bytes(tuned, read)


def _total(parts: Parts) -> int:
    return sum(parts.values())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _quantised_bytes(weight: torch.Tensor, quantization: Quantization) -> int:
    """bitsandbytes: 8 bits and a constant for every row, or 4 bits and a constant for every block of values."""
    values = weight.numel()
    if quantization.load_in_8bit:
        return values + FLOAT32_BYTES * weight.shape[0]
    blocks = values // ABSMAX_BLOCK
    nested = blocks + FLOAT32_BYTES * blocks // NESTED_BLOCK
    return values // VALUES_PER_BYTE + (nested if quantization.bnb_4bit_use_double_quant else FLOAT32_BYTES * blocks)
