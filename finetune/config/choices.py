"""Between what may be chosen? The settings whose values are named."""

from enum import Enum


class Stage(Enum):
    """What `run.py` does with the composed run."""

    train = "train"
    # Show what would be trained on; the model is not loaded.
    preview = "preview"
    # Say how many steps, how much memory and how much time it would take; the model is not loaded.
    plan = "plan"


class Source(Enum):
    """Where a model or a dataset lies: in the program's own packages, on this machine, or on the Hugging Face hub."""

    embedded = "embedded"
    local = "local"
    hub = "hub"


class BadRows(Enum):
    """What becomes of a row that cannot be read or used: an error, or it is left out, counted and shown."""

    error = "error"
    skip = "skip"


class Dtype(Enum):
    """A floating-point type; `auto` is chosen for the machine and printed with its reason."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Attention(Enum):
    """An attention implementation of transformers."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Quant(Enum):
    """The 4-bit number format of bitsandbytes."""

    nf4 = "nf4"
    fp4 = "fp4"


class Bias(Enum):
    """Which bias parameters of the base model are trained with the adapter (PEFT)."""

    none = "none"
    all = "all"
    lora_only = "lora_only"


class ControlTokens(Enum):
    """What becomes of a model's control tokens, such as <|im_end|>, inside the texts of rows."""

    error = "error"
    # They are read as text.
    escape = "escape"
    # They are read as control tokens.
    allow = "allow"


class Overlap(Enum):
    """What becomes of test prompts that are among the training rows too."""

    error = "error"
    # They are left out of training.
    drop = "drop"
    allow = "allow"


class Mode(Enum):
    """How W&B is reached; `auto` is online for a user who is logged in, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
