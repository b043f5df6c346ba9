"""On what does a run compute, in which precision, and why?"""

import os
import platform
from dataclasses import dataclass

import torch
from accelerate import PartialState

from finetune.config.schema import Adapter, Dtype, Model, Quantization
from finetune.machine.allowance import WHOLE_MACHINE, Allowance

TORCH_DTYPES = {Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16, Dtype.float32: torch.float32}


@dataclass(frozen=True)
class Device:
    """The machine's device and the floating-point types of a run, each with its reason."""

    kind: str
    name: str
    compute_dtype: torch.dtype  # of matrix products and activations
    weight_dtype: torch.dtype  # of weights that are not quantised
    why: str
    processes: int
    is_main_process: bool
    spare_gpus: int = 0  # that are here and not used
    allowance: Allowance = WHOLE_MACHINE

    @property
    def mixed_precision(self) -> str:
        """`bf16`, `fp16` or `no`: what Accelerate calls the activations' type."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.compute_dtype, "no")


def keep_to_one_gpu() -> int:
    """Use the first GPU alone unless a launcher gave this process its own, as TRL wants; how many are left unused.

    Called before anything else asks for a GPU.
    """
    if "LOCAL_RANK" in os.environ or (count := torch.cuda.device_count()) < 2:
        return 0
    hide_other_gpus(0)
    return count - 1


def hide_other_gpus(index: int) -> None:
    """Let this process see only one of the GPUs that it sees now."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)


def choose_device(
    model: Model,
    quantization: Quantization,
    adapter: Adapter,
    allowance: Allowance = WHOLE_MACHINE,
    spare_gpus: int = 0,
) -> Device:
    """The device of this process and the types that `auto` settings become on it; joins the other processes if any."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    state = PartialState(cpu=kind == "cpu")
    if kind == "cuda":
        name = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        name = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    compute, why = _fastest_dtype(kind)
    if quantization.load_in_4bit and quantization.bnb_4bit_compute_dtype is not Dtype.auto:
        compute = TORCH_DTYPES[quantization.bnb_4bit_compute_dtype]
        why = "set by quantization.bnb_4bit_compute_dtype"
    elif model.dtype is not Dtype.auto:
        compute, why = TORCH_DTYPES[model.dtype], "set by model.dtype"
    weight = TORCH_DTYPES.get(model.dtype, compute) if adapter.enabled else torch.float32
    if not adapter.enabled:
        why += "; all weights are trained, so they are kept in float32"
    processes, is_main = state.num_processes, state.is_main_process
    return Device(kind, name, compute, weight, why, processes, is_main, spare_gpus, allowance)


def _fastest_dtype(kind: str) -> tuple[torch.dtype, str]:
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float16, "this GPU has no native bfloat16"
    if torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.bfloat16, "this CPU multiplies bfloat16 in hardware (AMX)"
    return torch.float32, "this CPU multiplies float32 faster than bfloat16"


def finish_queued_work() -> None:
    """Wait for the GPU, so that a clock that is read next tells how long its work took."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
