"""What may be configured? Every setting with its type, default and meaning.

Nothing heavy is imported here: `--help`, `--cfg job` and every configuration error answer from this file alone.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


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


class AttentionKind(Enum):
    """An attention implementation of transformers."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class QuantType(Enum):
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


class OverlapPolicy(Enum):
    """What becomes of test prompts that are among the training rows too."""

    error = "error"
    # They are left out of training.
    drop = "drop"
    allow = "allow"


class TrackingMode(Enum):
    """How W&B is reached; `auto` is online for a user who is logged in, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class Data:
    """Which rows, how they are read, how they are split, and how an answer to them is scored."""

    # Short name of the data set, part of the run's name.
    name: str = MISSING
    source: Source = MISSING
    # A file (local), a data set's id (hub) or the name of a pinned archive (embedded).
    path: str = MISSING
    # The file in data_recipes/ that turns a row into prompt and completion.
    recipe: str = MISSING
    # The recipe's column name -> the data set's column name, where they differ.
    columns: dict[str, str] = field(default_factory=dict)
    # System prompt put before every prompt; empty: none.
    system: str = ""
    # Hub only: configuration name, revision (commit, tag or branch) and the split to train on.
    subset: str | None = None
    revision: str | None = None
    train_split: str = "train"
    # Held-out rows of their own: a file (local) or a split's name (hub). None: taken out of the rows above.
    validation: str | None = None
    test: str | None = None
    # Shares of the rows taken out where the data set has no held-out rows of its own.
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    # Chooses the splits, the held-out prompts and the examples of few-shot prompts, whatever the run's own seed.
    seed: int = 42
    # Rows with the same value of this column stay on one side of the split. None: a recipe's own grouping, if any.
    group: str | None = None
    bad_rows: BadRows = BadRows.error
    # With bad_rows=skip: more bad rows than this are an error after all.
    max_bad_rows: int = 100
    overlap: OverlapPolicy = OverlapPolicy.error
    # Train on at most this many rows. None: all of them.
    max_train_rows: int | None = None
    # Largest share of rows whose answer may be cut off at trainer.max_length.
    max_cut_share: float = 0.01
    control_tokens: ControlTokens = ControlTokens.error
    # How an answer is scored, names from evaluation/metrics.py; the first is the headline. Empty: the recipe's own.
    metrics: list[str] = field(default_factory=list)


@dataclass
class Model:
    """Which base model, and how its weights are held."""

    name: str = MISSING
    source: Source = MISSING
    # A folder (local), a repository id (hub) or the name of a pinned archive (embedded).
    path: str = MISSING
    # Hub only: the commit, tag or branch.
    revision: str | None = None
    # Type of the weights that are not quantised.
    dtype: Dtype = Dtype.auto
    attn_implementation: AttentionKind = AttentionKind.sdpa
    # Put the messages of a prompt one a line, without the chat template, which some base models do not have.
    plain_prompt: bool = False
    # Values of the chat template's own variables, such as enable_thinking, in training and in generation.
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    # Runs Python code that comes with the model. Only for a source that you trust.
    trust_remote_code: bool = False


@dataclass
class Quantization:
    """How the frozen base model is stored (the names are those of transformers' BitsAndBytesConfig)."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: QuantType = QuantType.nf4
    # The type that 4-bit weights are multiplied in.
    bnb_4bit_compute_dtype: Dtype = Dtype.auto
    # Quantise the quantisation constants too: saves about 0.4 bit a weight.
    bnb_4bit_use_double_quant: bool = True
    # 8 bit: outliers above this threshold stay in 16 bit.
    llm_int8_threshold: float = 6.0


@dataclass
class Adapter:
    """What is trained on top of the base model (the names are those of PEFT's LoraConfig)."""

    # False: no adapter, all weights are trained.
    enabled: bool = True
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    bias: Bias = Bias.none
    use_dora: bool = False
    use_rslora: bool = False
    # Names of modules, or "all-linear".
    target_modules: Any = "all-linear"
    # Modules trained in full and saved with the adapter.
    modules_to_save: list[str] | None = None
    # Indices of the layers that get an adapter. None: all.
    layers_to_transform: list[int] | None = None


@dataclass
class Eval:
    """How prompting the base model and tuning it are compared on held-out prompts."""

    # At most this many held-out test prompts. None: all of them.
    max_prompts: int | None = 100
    # Training rows shown as examples in a few-shot prompt. 0: the base is not prompted with examples.
    shots: int = 3
    # How often such examples are drawn; each draw answers all prompts.
    draws: int = 2
    # Let the tuned model answer the few-shot prompts, too.
    tuned_few_shot: bool = False
    # Score general text and simple questions before and after, to see what the model forgot.
    retention: bool = True
    # Tasks of EleutherAI's lm-evaluation-harness to score before and after: names, YAML files or folders of them.
    harness_tasks: list[str] = field(default_factory=list)
    # Documents of each such task. None: all of them.
    harness_limit: int | None = None
    # Prompts answered at a time. None: 100, or fewer where their keys and values would take more than 4 GiB.
    batch_size: int | None = None
    # Longest answer, in tokens. None: a quarter more than the longest training answer.
    max_new_tokens: int | None = None
    # 0 is greedy decoding; above it, answers are sampled.
    temperature: float = 0.0
    top_p: float = 1.0
    # 0: no limit.
    top_k: int = 0


@dataclass
class Tracking:
    """Where the numbers go besides the run's folder."""

    # False: nothing is sent and wandb is not imported.
    enabled: bool = True
    mode: TrackingMode = TrackingMode.auto
    project: str = "finetune"
    entity: str | None = None
    # Runs of one group are drawn together. None: `<model>-<data>`.
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class PlanLimits:
    """What a run may take, where that is not what this machine has."""

    # Memory that the run may use, in GiB. None: what the device has free.
    memory_gib: float | None = None
    # Speed that the device reaches in matrix products, in TFLOP/s, for a device that is not here. None: measured here.
    tflops: float | None = None


@dataclass
class Sweep:
    """How the trials of a sweep (`-m`) are kept together, and when one of them or all are given up."""

    # Name of the sweep's folder in `<output_dir>/sweeps`. None: a hash of what is swept.
    name: str | None = None
    # Start no further trial once more than so many have failed. None: all are tried.
    max_failures: int | None = None
    # Seconds after which a trial is taken to hang and is ended. None: no limit.
    time_limit: float | None = None
    # After a search, run so many of its best trials over more seeds before one is chosen. None: no trial.
    repeat_best: int | None = None
    # The number of further seeds for each of them.
    repeat_seeds: int = 2
    # Set by a search for its trials: where its study is, this trial's number in it, and what may end it early.
    study: str | None = None
    trial: int | None = None
    pruner: str = "none"
    # Set by a search for its trials: score the tuned model on validation prompts, and leave the test prompts alone.
    on_validation: bool = False
    # Repeat even trials that would end the same way: pruned, diverged, out of memory.
    repeat_failures: bool = False


@dataclass
class Config:
    """One run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    quantization: Quantization = field(default_factory=Quantization)
    adapter: Adapter = field(default_factory=Adapter)
    # Every field of TRL's SFTConfig under its own name.
    trainer: dict[str, Any] = field(default_factory=dict)
    eval: Eval = field(default_factory=Eval)
    tracking: Tracking = field(default_factory=Tracking)
    plan: PlanLimits = field(default_factory=PlanLimits)
    sweep: Sweep = field(default_factory=Sweep)
    stage: Stage = Stage.train
    # Train even where the memory is predicted not to suffice.
    force: bool = False
    # Of training: the adapter's first weights, the order of the rows, dropout.
    seed: int = 42
    # Name of the run and of its folder. None: `<model>-<data>-<hash of the settings>`.
    name: str | None = None
    # The folder that holds the runs' folders.
    output_dir: str = "outputs"


def register_schema() -> None:
    """Make the schema known to Hydra as the option `schema`, the first entry of conf/config.yaml's defaults."""
    schema = OmegaConf.structured(Config)
    # Any key may be set here with no plus. Unknown ones are refused by cli/trainer_rules.py, data/columns.py and
    # training/chat_template.py.
    for mapping in (schema.trainer, schema.data.columns, schema.model.chat_template_kwargs):
        OmegaConf.set_struct(mapping, False)
    ConfigStore.instance().store(name="schema", node=schema)


def to_dataclass(config: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, interpolations resolved."""
    resolved = OmegaConf.to_object(config)
    assert isinstance(resolved, Config)
    return resolved
