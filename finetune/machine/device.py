"""On what does a run compute, in which precision, and why?"""

import os
import platform
from dataclasses import dataclass

import torch
from accelerate import PartialState

from finetune.config.schema import Adapter, Dtype, Model, Quantization


@dataclass(frozen=True)
class Device:
    """The machine's device and the floating-point types of a run, each with its reason."""

    kind: str
    name: str
    # Matrix products and activations.
    compute_dtype: torch.dtype
    # Weights that are not quantised.
    weight_dtype: torch.dtype
    why: str
    processes: int
    is_main_process: bool
    # GPUs that are here and not used.
    spare_gpus: int = 0

    @property
    def mixed_precision(self) -> str:
        """`bf16`, `fp16` or `no`: what Accelerate calls the activations' type."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.compute_dtype, "no")


# What `keep_to_one_gpu` left alone.
_spare_gpus = 0


def keep_to_one_gpu() -> None:
    """Leave all GPUs but the first alone, unless a launcher gave this process its own: TRL refuses several in one.

    Called before anything else asks for a GPU.
    """
    global _spare_gpus
    if "LOCAL_RANK" in os.environ or (count := torch.cuda.device_count()) < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0] if visible else "0"
    _spare_gpus = count - 1


def choose_device(model: Model, quantization: Quantization, adapter: Adapter) -> Device:
    """The device of this process and the types that `auto` settings become on it; joins the other processes if any."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    state = PartialState(cpu=kind == "cpu")
    compute, why = _fastest_dtype(kind)
    if quantization.load_in_4bit and quantization.bnb_4bit_compute_dtype is not Dtype.auto:
        compute, why = _torch_dtype(quantization.bnb_4bit_compute_dtype), "set by quantization.bnb_4bit_compute_dtype"
    elif model.dtype is not Dtype.auto:
        compute, why = _torch_dtype(model.dtype), "set by model.dtype"
    if model.dtype is not Dtype.auto:
        weight = _torch_dtype(model.dtype)
    elif adapter.enabled:
        weight = compute
    else:
        weight = torch.float32
        why += "; all weights are trained, so they are kept in float32"
    return Device(kind, _name(kind), compute, weight, why, state.num_processes, state.is_main_process, _spare_gpus)


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    return {Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16, Dtype.float32: torch.float32}[dtype]


def _fastest_dtype(kind: str) -> tuple[torch.dtype, str]:
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float16, "this GPU has no native bfloat16"
    if torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.bfloat16, "this CPU multiplies bfloat16 in hardware (AMX)"
    return torch.float32, "this CPU multiplies float32 faster than bfloat16"


def _name(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def finish_queued_work() -> None:
    """Wait for the GPU, so that a clock that is read next tells how long its work took."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
