"""What may be configured? Every setting with its type, default and meaning."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


class Stage(Enum):
    """What `run.py` does with the composed run; a preview and a plan load no model."""

    train = "train"
    preview = "preview"  # show what would be trained on
    plan = "plan"  # say how many steps, how much memory and how much time it would take


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
    """What becomes of a model's control tokens, such as <|im_end|>, and of control characters inside the texts of rows.

    Control characters are those of Unicode's category Cc but tab, newline and carriage return.
    """

    error = "error"
    escape = "escape"  # the tokens are read as text, and a space stands for each control character
    allow = "allow"  # they are read as control tokens, and control characters are kept


class OverlapPolicy(Enum):
    """What becomes of test prompts that are among the training rows too."""

    error = "error"
    drop = "drop"  # they are left out of training
    allow = "allow"


class TrackingMode(Enum):
    """How W&B is reached; `auto` is online for a user who is logged in, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class Data:
    """Which rows, how they are read, how they are split, and how an answer to them is scored."""

    name: str = MISSING  # short name of the data set, part of the run's name
    source: Source = MISSING
    path: str = MISSING  # a file (local), a data set's id (hub) or the name of a pinned archive (embedded)
    recipe: str = MISSING  # the file in data_recipes/ that turns a row into prompt and completion
    columns: dict[str, str] = field(default_factory=dict)  # the recipe's name -> the data set's, where they differ
    system: str = ""  # system prompt put before every prompt; empty: none
    system_candidates: list[str] = field(default_factory=list)  # further system prompts that eval=best_prompt tries
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
    seed: int = 42  # of splits, held-out prompts and the examples of few-shot prompts, whatever the run's own seed
    # Rows with the same value of this column stay on one side of the split. None: a recipe's own grouping, if any.
    group: str | None = None
    bad_rows: BadRows = BadRows.error
    max_bad_rows: int = 100  # with bad_rows=skip: more bad rows than this are an error after all
    overlap: OverlapPolicy = OverlapPolicy.error
    max_train_rows: int | None = None  # None: all of them
    max_cut_share: float = 0.01  # largest share of rows whose answer may be cut off at trainer.max_length
    control_tokens: ControlTokens = ControlTokens.error
    # How an answer is scored, names from evaluation/metrics.py; the first is the headline. Empty: the recipe's own.
    metrics: list[str] = field(default_factory=list)


@dataclass
class Model:
    """Which base model, and how its weights are held."""

    name: str = MISSING
    source: Source = MISSING
    path: str = MISSING  # a folder (local), a repository id (hub) or the name of a pinned archive (embedded)
    revision: str | None = None  # hub only: the commit, tag or branch
    dtype: Dtype = Dtype.auto  # of the weights that are not quantised
    attn_implementation: AttentionKind = AttentionKind.sdpa
    # For base models that have no chat template: one message a line or, where texts hold lines, with more between them.
    plain_prompt: bool = False
    # Values of the chat template's own variables, such as enable_thinking, in training and in generation.
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False  # runs Python code that comes with the model; only for a source that you trust


@dataclass
class Quantization:
    """How the frozen base model is stored (the names are those of transformers' BitsAndBytesConfig)."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: QuantType = QuantType.nf4
    bnb_4bit_compute_dtype: Dtype = Dtype.auto  # the type that 4-bit weights are multiplied in
    bnb_4bit_use_double_quant: bool = True  # quantise the quantisation constants too: saves about 0.4 bit a weight
    llm_int8_threshold: float = 6.0  # 8 bit: outliers above this stay in 16 bit


@dataclass
class Adapter:
    """What is trained on top of the base model (the names are those of PEFT's LoraConfig)."""

    enabled: bool = True  # False: no adapter, all weights are trained
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    bias: Bias = Bias.none
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: Any = "all-linear"  # or names of modules
    modules_to_save: list[str] | None = None  # trained in full and saved with the adapter
    layers_to_transform: list[int] | None = None  # indices of the layers that get an adapter; None: all


@dataclass
class Eval:
    """How prompting the base model and tuning it are compared on held-out prompts."""

    max_prompts: int | None = 100  # at most this many held-out test prompts; None: all of them
    # Training rows shown as examples in a few-shot prompt, others for each prompt; 0: there is no such arm.
    shots: int = 3
    # Let the base model answer the best of several ways of prompting, too, chosen on validation prompts.
    best_prompt: bool = False
    tuned_few_shot: bool = False  # let the tuned model answer the few-shot prompts, too
    retention: bool = True  # score general text and simple questions before and after: what does the model forget?
    # Tasks of EleutherAI's lm-evaluation-harness to score before and after: names, YAML files or folders of them.
    harness_tasks: list[str] = field(default_factory=list)
    harness_limit: int | None = None  # documents of each such task; None: all of them
    # Prompts answered at a time. None: 100, or fewer where their keys and values would take more than 4 GiB.
    batch_size: int | None = None
    max_new_tokens: int | None = None  # longest answer; None: a quarter, or 32, more than the longest training answer
    temperature: float = 0.0  # 0 is greedy decoding; above it, answers are sampled
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit


@dataclass
class Tracking:
    """Where the numbers go besides the run's folder."""

    enabled: bool = True  # False: nothing is sent and wandb is not imported
    mode: TrackingMode = TrackingMode.auto
    project: str = "finetune"
    entity: str | None = None
    group: str | None = None  # runs of one group are drawn together; None: `<model>-<data>`
    tags: list[str] = field(default_factory=list)


@dataclass
class PlanLimits:
    """What a run may take, where that is not what this machine has."""

    memory_gib: float | None = None  # None: what the device has free
    tflops: float | None = None  # speed in matrix products, for a device that is not here; None: measured here


@dataclass
class Checkpoint:
    """When a checkpoint is written besides those of trainer.save_steps, to continue from."""

    every_minutes: float | None = 10.0  # None: none besides
    max_share: float = 0.05  # of the time of training that checkpoints may have taken when such a one is begun


@dataclass
class Sweep:
    """How the trials of a sweep (`-m`) are kept together, and when one of them or all are given up."""

    name: str | None = None  # of the sweep's folder in `<output_dir>/sweeps`; None: a hash of what is swept
    max_failures: int | None = None  # start no further trial once more have failed; None: all are tried
    time_limit: float | None = None  # seconds after which a trial is taken to hang and is ended; None: no limit
    repeat_best: int | None = None  # after a search, run so many of its best trials over more seeds; None: no trial
    repeat_seeds: int = 2  # the number of further seeds for each of them
    # Set by a search for its trials: where its study is, this trial's number in it, and what may end it early.
    study: str | None = None
    trial: int | None = None
    pruner: str = "none"
    # Set by a search for its trials: score the tuned model on validation prompts, and leave the test prompts alone.
    on_validation: bool = False
    repeat_failures: bool = False  # even trials that would end the same way: pruned, diverged, out of memory


@dataclass
class Config:
    """One run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    quantization: Quantization = field(default_factory=Quantization)
    adapter: Adapter = field(default_factory=Adapter)
    trainer: dict[str, Any] = field(default_factory=dict)  # every field of TRL's SFTConfig under its own name
    eval: Eval = field(default_factory=Eval)
    tracking: Tracking = field(default_factory=Tracking)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    plan: PlanLimits = field(default_factory=PlanLimits)
    sweep: Sweep = field(default_factory=Sweep)
    stage: Stage = Stage.train
    force: bool = False  # train even where the memory is predicted not to suffice
    overwrite: bool = False  # move what an earlier run left in the folder aside, and start afresh
    max_nonfinite_steps: int = 3  # training stops after so many in a row whose loss or gradient is not finite
    seed: int = 42  # of training: the adapter's first weights, the order of the rows, dropout
    name: str | None = None  # of the run and of its folder; None: `<model>-<data>-<hash of the settings>`
    output_dir: str = "outputs"  # the folder that holds the runs' folders


def register_schema() -> None:
    """Make the schema known to Hydra as the option `schema`, the first entry of conf/config.yaml's defaults."""
    schema = OmegaConf.structured(Config)
    # Any key may be set here: cli/trainer_rules.py, data/columns.py and training/tokenize.py check it.
    for mapping in (schema.trainer, schema.data.columns, schema.model.chat_template_kwargs):
        OmegaConf.set_struct(mapping, False)
    ConfigStore.instance().store(name="schema", node=schema)
