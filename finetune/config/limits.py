"""Within which limits must a number lie?"""

from collections.abc import Callable
from typing import Any

Limit = tuple[str, Callable[[Any], bool]]
"""What a value has to be, in words, and the test of it."""

LIMITS: dict[str, Limit] = {
    "seed": ("between 0 and 4294967295", lambda v: 0 <= v < 2**32),
    "data.validation_fraction": ("above 0 and below 1", lambda v: 0 < v < 1),
    "data.test_fraction": ("above 0 and below 1", lambda v: 0 < v < 1),
    "data.max_train_rows": ("at least 1", lambda v: v >= 1),
    "data.max_cut_share": ("between 0 and 1", lambda v: 0 <= v <= 1),
    "data.max_bad_rows": ("at least 0", lambda v: v >= 0),
    "adapter.r": ("at least 1", lambda v: v >= 1),
    "adapter.lora_alpha": ("at least 1", lambda v: v >= 1),
    "adapter.lora_dropout": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "quantization.llm_int8_threshold": ("at least 0", lambda v: v >= 0),
    "eval.max_prompts": ("at least 1", lambda v: v >= 1),
    "eval.shots": ("at least 0", lambda v: v >= 0),
    "eval.draws": ("at least 1", lambda v: v >= 1),
    "eval.harness_limit": ("at least 1", lambda v: v >= 1),
    "eval.batch_size": ("at least 1", lambda v: v >= 1),
    "eval.max_new_tokens": ("at least 1", lambda v: v >= 1),
    "eval.temperature": ("at least 0", lambda v: v >= 0),
    "eval.top_p": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "eval.top_k": ("at least 0", lambda v: v >= 0),
    "plan.memory_gib": ("above 0", lambda v: v > 0),
    "plan.tflops": ("above 0", lambda v: v > 0),
    "sweep.max_failures": ("at least 0", lambda v: v >= 0),
    "sweep.time_limit": ("above 0", lambda v: v > 0),
}


def limit_problem(key: str, value: Any) -> str | None:
    """What is wrong with a setting's number, if anything is; None passes, and a NaN fits nothing."""
    if key not in LIMITS or value is None or LIMITS[key][1](value):
        return None
    return f"{key}={value}: it must be {LIMITS[key][0]}."
