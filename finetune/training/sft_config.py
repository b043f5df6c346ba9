"""With which of TRL's settings is it trained?"""

from pathlib import Path
from typing import Any

from trl import SFTConfig

from finetune.machine.device import Device

# From this many parameters on, activations are recomputed rather than kept, unless the user says otherwise.
CHECKPOINTING_FROM = 1_000_000_000


def build_sft_config(chosen: dict[str, Any], machine: Device, folder: Path, seed: int, parameters: int) -> SFTConfig:
    """TRL's settings: `chosen` (the user's, by SFTConfig's names) over what follows from the machine and the run.

    `parameters` is the number of the base model's parameters.
    """
    ours: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "seed": seed,
        "use_cpu": machine.kind == "cpu",
        "bf16": machine.mixed_precision == "bf16" and not chosen.get("fp16"),
        "fp16": machine.mixed_precision == "fp16" and not chosen.get("bf16"),
        "dataloader_pin_memory": machine.kind == "cuda",
        "logging_nan_inf_filter": False,  # a NaN loss must be seen, not averaged away
        "disable_tqdm": True,
        "report_to": "none",
    }
    if not {"activation_checkpointing", "gradient_checkpointing"} & chosen.keys():  # TRL turns it on
        ours[checkpointing_name()] = parameters >= CHECKPOINTING_FROM
    return SFTConfig(**(ours | chosen))


def checkpointing_name() -> str:
    """What the installed transformers calls it: 5.23 gave it a new name, which wins over the old one."""
    renamed = hasattr(SFTConfig, "activation_checkpointing")
    return "activation_checkpointing" if renamed else "gradient_checkpointing"
