"""How much memory does a run need at its peak, and for what?

A run has phases: training steps, of which the longest batch counts, validation, and answers. Each is gone through with
a model that has shapes but no contents (hollow.py); to what is alive then comes what lies still: weights, optimizer.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from finetune.config.schema import Config, Quantization
from finetune.evaluation.forgetting import choose_general_prompts
from finetune.evaluation.generate import prefix_cache
from finetune.evaluation.prompts import choose_prompts
from finetune.machine.allowance import Fit, assess_fit
from finetune.machine.device import Device
from finetune.machine.process_memory import available_memory_bytes, held_memory_bytes, release_freed_memory
from finetune.planning.meta_model import Parts, build_meta_model, peak_tensor_bytes
from finetune.planning.workload import AnswerWorkload, Batch, Workload, measure_workload
from finetune.training.prepare import PreparedRun
from finetune.training.trainer import Trainer, mixed_precision, recompute_activations

GIB = 2**30
# On a CPU: what libraries map and keep once a model computes, and what the heap holds for every byte that is alive in
# it. Both are measured, see benchmarks/plan_accuracy.py.
LIBRARIES = 470 * 2**20
HEAP = 1.4
# Bytes that an optimizer keeps for each trained value, by the beginning of its name; AdamW's two float32 if none fits.
OPTIMIZER_BYTES = {"sgd": 0, "adafactor": 0, "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion": 4}
ABSMAX_BLOCK = 64


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes of each phase by what they are for, and how many may be used."""

    phases: dict[str, Parts]
    available: int
    # Bytes that the process holds before the model is loaded.
    held: int
    # Prompts that are answered together.
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
    def unpacks(self) -> bool:
        """Whether 4-bit weights are dequantised once for all answers, which then has room below the peak."""
        answers, step = self.phases.get("answers", {}), self.phases["training step"]
        return answers.get("dequantisation", 0) > step["dequantisation"]

    def bytes_of(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())


def estimate_memory(
    config: Config, prepared: PreparedRun, machine: Device, held: int | None = None
) -> tuple[Trainer, Workload, MemoryNeed]:
    """The trainer of a run around a model without contents, what it has to do, and the memory that it needs.

    `held` are the bytes that the process holds already, by default what it does hold.
    """
    release_freed_memory()
    held = held_memory_bytes() if held is None else held
    trainer = Trainer(build_meta_model(prepared.outline, config, machine), prepared, [])
    recompute_activations(trainer)
    prompts, general = choose_prompts(config, prepared), choose_general_prompts(config, prepared)
    todo = measure_workload(trainer, prepared, prompts, general)
    available = config.plan.memory_gib * GIB if config.plan.memory_gib else available_memory_bytes()
    together = todo.answers.batch_size if todo.answers else 0
    return trainer, todo, MemoryNeed(_phases(config, trainer, todo, held), round(available), held, together)


def _phases(config: Config, trainer: Any, todo: Workload, held: int) -> dict[str, Parts]:
    """What the process holds now, what lies still, and what each phase has alive at its worst."""
    on_cpu = trainer.args.device.type == "cpu"
    still = weight_bytes(trainer.model, config.quantization)
    trained = trained_bytes(trainer.model, str(trainer.args.optim))
    if on_cpu:
        still = {
            "Python and libraries": held + LIBRARIES,
            **still,
            "copies": _copies(trainer.model),
        }
    heap = HEAP if on_cpu else 1.0
    state = {"optimizer": trained["optimizer"]}
    if trainer.args.gradient_accumulation_steps > 1:
        state["gradients"] = trained["gradients"]

    def phase(alive: Parts) -> Parts:
        return still | state | {part: round(size * heap) for part, size in alive.items()}

    steps = [phase(training_bytes(trainer, batch)) for batch in todo.largest]
    phases = {"training step": max(steps, key=lambda parts: sum(parts.values())), "optimizer step": still | trained}
    if todo.largest_validation:
        phases["validation"] = phase(validation_bytes(trainer, todo.largest_validation))
    if todo.answers:
        most = _largest([todo.answers, *todo.few_shot])
        asked = [phase(answering_bytes(trainer.model, one)) for one in most]
        phases["answers"] = max(asked, key=lambda parts: sum(parts.values()))
        if on_cpu:
            phases["answers"]["copies"] *= 2  # the base's, and what was trained while the base answers
        if on_cpu and config.quantization.load_in_4bit:
            before = max(sum(parts.values()) for name, parts in phases.items() if name != "answers")
            unpacked = sum(map(_bytes, _quantised(trainer.model).values()))
            if sum(phases["answers"].values()) + unpacked < before:  # evaluate.answer does so, too
                phases["answers"]["dequantisation"] = unpacked
    return phases


def _largest(asked: list[AnswerWorkload]) -> list[AnswerWorkload]:
    """Of what is asked, what has the largest cache and, where that is another, the most to read."""

    def cache(one: AnswerWorkload) -> int:
        return one.batch_size * (one.longest + one.new_tokens)

    def rest(one: AnswerWorkload) -> int:
        return one.batch_size * (one.longest - one.prefix)

    first, second = max(asked, key=cache), max(asked, key=lambda one: (rest(one), cache(one)))
    return [first] if second is first else [first, second]


def weight_bytes(tuned: Any, quantization: Quantization) -> Parts:
    """Bytes of the base's weights as they are stored, of the adapter, and of the largest matrix when dequantised."""
    quantised = _quantised(tuned) if quantization.load_in_4bit or quantization.load_in_8bit else {}
    parts: Counter[str] = Counter(weights=0, adapter=0)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parts["adapter"] += _bytes(parameter)
        elif id(parameter) in quantised:
            parts["weights"] += _quantised_bytes(parameter, quantization)
        else:
            parts["weights"] += _bytes(parameter)
    parts["dequantisation"] = max(map(_bytes, quantised.values()), default=0)
    return dict(parts)


def _quantised(tuned: Any) -> dict[int, torch.Tensor]:
    """The weights that are stored in 4 or 8 bits, by their identity: those of all linear layers but the head."""
    head = tuned.get_output_embeddings()
    return {
        id(module.weight): module.weight
        for name, module in tuned.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
    }


def trained_bytes(tuned: Any, optimizer: str) -> Parts:
    """Bytes of the gradients and of the optimizer's state."""
    values = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    state = next((size for name, size in OPTIMIZER_BYTES.items() if optimizer.startswith(name)), 8)
    gradients = sum(_bytes(parameter) for parameter in tuned.parameters() if parameter.requires_grad)
    return {"gradients": gradients, "optimizer": values * state}


def training_bytes(trainer: Any, longest: Batch) -> Parts:
    """The most that is alive at once in a training step: activations, logits, and gradients as far as they exist."""

    def step() -> None:
        with mixed_precision(trainer.args):
            loss = trainer.compute_loss(trainer.model, dict(longest))
        loss.backward()

    trainer.model.train()
    parts = peak_tensor_bytes(trainer.model, step)
    trainer.model.zero_grad(set_to_none=True)
    return parts


def validation_bytes(trainer: Any, longest: Batch) -> Parts:
    """The most that is alive at once while a validation batch is scored."""

    def score() -> None:
        with torch.no_grad(), mixed_precision(trainer.args):
            trainer.compute_loss(trainer.model, dict(longest))

    trainer.model.eval()
    return peak_tensor_bytes(trainer.model, score)


def answering_bytes(tuned: Any, answers: AnswerWorkload) -> Parts:
    """The most that is alive at once while prompts are read, with room in the cache for whole answers."""
    prefix = max(answers.prefix, 1)

    def read() -> None:
        with torch.no_grad():
            room = answers.longest + answers.new_tokens
            cache = prefix_cache(tuned, [0] * prefix, answers.batch_size, room)
            shape = answers.batch_size, max(answers.longest - prefix, 1)
            ids = torch.zeros(shape, dtype=torch.long, device=tuned.device)
            tuned(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.float()

    tuned.eval()
    return peak_tensor_bytes(tuned, read)


def _copies(tuned: Any) -> int:
    """Bytes of the copy that a run keeps of trained weights of the base, to put them back while the base answers."""
    trained = [p for name, p in tuned.named_parameters() if p.requires_grad and "lora_" not in name]
    return sum(map(_bytes, trained))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _quantised_bytes(weight: torch.Tensor, quantization: Quantization) -> int:
    """bitsandbytes: 4 bits and a constant for every 64 values, or 8 bits and a constant for every row."""
    values = weight.numel()
    if quantization.load_in_8bit:
        return values + 4 * weight.shape[0]
    blocks = values // ABSMAX_BLOCK
    return values // 2 + (blocks + blocks // ABSMAX_BLOCK if quantization.bnb_4bit_use_double_quant else 4 * blocks)
