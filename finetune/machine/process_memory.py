"""How much memory does this process hold, and how much may it hold?"""

import ctypes
import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState

from finetune.machine.allowance import WHOLE_MACHINE, Allowance

# Kernels that PyTorch and oneDNN keep on a CPU; a step uses fewer.
KERNELS_KEPT = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
# mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
MALLOPT = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 64 << 20}


def set_up_memory() -> None:
    """Before the first computation: count the peak from here; on a CPU, keep freed memory, but few compiled kernels.

    A kernel is compiled for each length of a batch, and a thousand of them, which are kept otherwise, take gigabytes.
    """
    for name, capacity in KERNELS_KEPT.items():
        os.environ.setdefault(name, capacity)
    if platform.libc_ver()[0] == "glibc" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        libc = ctypes.CDLL("libc.so.6")  # on a CPU, page faults are a fifth of a training step
        for parameter, value in MALLOPT.items():
            libc.mallopt(parameter, value)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not every sandbox lets a process write here
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak resident size becomes the present one


def release_freed_memory() -> None:
    """On a CPU, give freed memory back to the system: while blocks are of ever other sizes, the heap grows."""
    if not torch.cuda.is_available() and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def available_memory_bytes(allowance: Allowance = WHOLE_MACHINE) -> int:
    """How much memory this process may hold, with what it holds already: an equal share where processes share it."""
    to_begin, at_a_time = allowance.runs_to_begin, allowance.runs_at_a_time
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return min(free // to_begin + torch.cuda.memory_reserved(), total // at_a_time)
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = (int(facts[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    share = min(total, limit or total) // at_a_time
    return min(free // PartialState().num_processes // to_begin + held_memory_bytes(allowance), share)


def held_memory_bytes(allowance: Allowance = WHOLE_MACHINE) -> int:
    """The memory that this process holds now: on the GPU where there is one, else its own in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resident - allowance.inherited_bytes


def fits_below_peak(size: int) -> bool:
    """Whether with so many further bytes the process would hold less than it has at its peak."""
    return size < peak_memory_bytes() - held_memory_bytes()


def _cgroup_bytes(name: str) -> int | None:
    file = Path("/sys/fs/cgroup") / name
    text = file.read_text().strip() if file.is_file() else "max"
    return int(text) if text.isdigit() else None


def peak_memory_bytes() -> int:
    """The largest memory that this process has held: on the GPU where there is one, else resident in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
