"""Within which limits must a number lie?"""

import math
from collections.abc import Callable
from typing import Any

from finetune.config.spelling import spell

# What a value has to be, in words -> the test of it, and the settings that it holds for.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "between 0 and 4294967295": (lambda v: 0 <= v < 2**32, "seed"),
    "between 0 and 1": (lambda v: 0 <= v <= 1, "data.max_cut_share checkpoint.max_share"),
    "above 0 and below 1": (lambda v: 0 < v < 1, "data.validation_fraction data.test_fraction"),
    "above 0 and at most 1": (lambda v: 0 < v <= 1, "eval.top_p"),
    "above 0, and finite": (lambda v: 0 < v < math.inf, "trainer.learning_rate"),
    "at least 1, or null": (lambda v: v >= 1, "trainer.max_length trainer.save_total_limit"),
    "at least 1, or -1 for num_train_epochs to decide": (lambda v: v >= 1 or v == -1, "trainer.max_steps"),
    "at least 0 and below 1": (
        lambda v: 0 <= v < 1,
        "adapter.lora_dropout trainer.adam_beta1 trainer.adam_beta2 trainer.label_smoothing_factor",
    ),
    "above 0": (
        lambda v: v > 0,
        "checkpoint.every_minutes plan.memory_gib plan.tflops sweep.time_limit "
        "trainer.num_train_epochs trainer.logging_steps trainer.eval_steps trainer.save_steps",
    ),
    "at least 0": (
        lambda v: v >= 0,
        "data.max_bad_rows quantization.llm_int8_threshold eval.shots eval.temperature eval.top_k sweep.max_failures "
        "trainer.weight_decay trainer.adam_epsilon trainer.warmup_steps trainer.max_grad_norm "
        "trainer.dataloader_num_workers",
    ),
    "at least 1": (
        lambda v: v >= 1,
        "max_nonfinite_steps data.max_train_rows adapter.r adapter.lora_alpha "
        "eval.max_prompts eval.harness_limit eval.batch_size eval.max_new_tokens "
        "sweep.repeat_best sweep.repeat_seeds "
        "trainer.per_device_train_batch_size trainer.per_device_eval_batch_size trainer.gradient_accumulation_steps",
    ),
}
LIMITS = {key: (words, holds) for words, (holds, keys) in RULES.items() for key in keys.split()}


def limit_problem(key: str, value: Any) -> str | None:
    """What is wrong with a setting's number, if anything is; None passes, and a NaN fits nothing."""
    words, holds = LIMITS.get(key, ("", lambda _: True))
    return None if value is None or holds(value) else f"{key}={spell(value)}: it must be {words}."
