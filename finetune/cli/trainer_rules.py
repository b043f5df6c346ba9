"""Which `trainer` settings are wrong, and what should be written instead?"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune.config.limits import limit_problem
from finetune.config.sft_fields import sft_fields
from finetune.config.spelling import spell
from finetune.errors import did_you_mean

TRACKING = "numbers are sent by tracking=wandb, under tracking.project, tracking.group and name"
PUBLISHING = "a run publishes nothing. Upload the folder adapter/ of a finished run yourself"
SHARDED = "a model in shards can neither be saved nor answer here; several processes each hold all of it"
TRACKING_FIELDS = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
HUB_FIELDS = ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision")
# Fields that the program sets itself or never reads.
REFUSED = {
    **dict.fromkeys(TRACKING_FIELDS, TRACKING),
    **dict.fromkeys(("push_to_hub", *HUB_FIELDS), PUBLISHING),
    "output_dir": "a run has its own folder. Write output_dir=FOLDER and name=NAME, without trainer",
    "run_name": "the run's name is elsewhere. Write name=NAME",
    "seed": "one seed is for everything. Write seed=N, without trainer",
    "model_init_kwargs": "the model has a part of its own. Write model.dtype, model.revision and so on",
    "trust_remote_code": "the model has a part of its own. Write model.trust_remote_code=true",
    "dataset_text_field": "columns are named where the data is. Write data.columns",
    "dataset_kwargs": "rows are always prepared here. Leave it out",
    "hub_token": f"a secret does not belong in a configuration. Set HF_TOKEN in the environment; {PUBLISHING}",
    "disable_tqdm": "the run draws a bar of its own. Leave it out",
    **dict.fromkeys(("do_train", "do_predict"), "stage says what is done. Leave it out"),
    "do_eval": "stage says what is done. Leave it out, and see trainer.eval_strategy",
    "resume_from_checkpoint": "the same command continues its run. Leave it out",
    "local_rank": "the launcher sets it. Leave it out, and see accelerate launch",
    "save_only_model": "without the optimizer a stopped run could not go on as it was. Leave it out",
    "ignore_data_skip": "a stopped run would read other rows when it goes on. Leave it out",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), f"{SHARDED}. Leave it out"),
    "auto_find_batch_size": "it would change the batch size without a word. Leave it out: stage=plan says what fits",
    "pad_token": "it is deprecated in TRL, and the tokenizer's own is used. Leave it out",
    "shuffle_dataset": "every epoch is shuffled by seed. Leave it out",
    "use_liger_kernel": "it is deprecated in TRL, and the loss is fused already. Leave it out",
}
DEPRECATED = {
    "truncation_mode": ("keep_end", "Write trainer.truncation_mode=keep_start"),
    "packing_strategy": ("bfd-requeue", "Write trainer.packing_strategy=bfd_split"),
    "loss_type": ("chunked_nll", "Write trainer.loss_type=nll, which is the same"),
}
TRACKERS = ("tensorboard", "mlflow", "trackio", "comet_ml", "clearml", "neptune", "swanlab")  # packages of these names
FILES = {"chat_template_path": "a file with a Jinja chat template"}
# The defaults of TRL, on which rules depend.
DEFAULT_BATCH_SIZE = 8
DEFAULT_SAVE_STEPS = 500
# Names of other versions and other programs.
RENAMED_FIELDS = {
    "warmup_ratio": "trainer.warmup_steps, which takes a share such as 0.05 too",
    "group_by_length": "trainer.train_sampling_strategy=group_by_length",
    "evaluation_strategy": "trainer.eval_strategy",
    "max_seq_length": "trainer.max_length",
    "batch_size": "trainer.per_device_train_batch_size",
    "epochs": "trainer.num_train_epochs",
    "lr": "trainer.learning_rate",
    "scheduler": "trainer.lr_scheduler_type",
    "lr_scheduler": "trainer.lr_scheduler_type",
    "optimizer": "trainer.optim",
}


def trainer_problems(trainer: dict[str, Any], attention: str) -> Iterator[str]:
    """What is wrong with the section `trainer` under this attention, one sentence or two for each problem."""
    problems = {name: trainer_field_problem(name, value) for name, value in trainer.items()}
    yield from filter(None, problems.values())
    sound = {name: value for name, value in trainer.items() if not problems[name]}
    yield from _check_layout(sound, attention)
    yield from _check_pairs(sound)
    yield from _check_best_checkpoint(sound)


def trainer_field_problem(name: str, value: Any) -> str | None:
    """What is wrong with the single setting `trainer.<name>=<value>`, if anything is."""
    field = sft_fields().get(name)
    setting = f"trainer.{name}={'***' if name == 'hub_token' else spell(value)}"
    if field is None:
        return f"{setting}: {unknown_trainer_field(name)}"
    if name in REFUSED and value not in (None, "") and value is not False:
        return f"{setting}: {REFUSED[name]}."
    if not field.accepts(value):
        is_no = value is False and "no" in field.choices
        hint = ' In a YAML file, write "no" in quotes.' if is_no else did_you_mean(str(value), field.choices)
        return f"{setting}: expected {field.expected}.{hint}"
    if name in DEPRECATED and value == DEPRECATED[name][0]:
        return f"{setting}: it is deprecated in TRL. {DEPRECATED[name][1]}."
    if problem := limit_problem(f"trainer.{name}", value):
        return problem
    if name in FILES and isinstance(value, str) and not Path(value).is_file():
        return f"{setting}: there is no such file. It names {FILES[name]}."
    if name == "report_to" and any(v in ("wandb", "all") for v in _listed(value)):
        return f"{setting}: {TRACKING}."
    if name == "report_to" and (missing := [v for v in _listed(value) if v in TRACKERS and not find_spec(v)]):
        return f"{setting}: it needs a package that is not here. Install it: pip install {' '.join(missing)}."
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def unknown_trainer_field(name: str) -> str:
    """Why `trainer.<name>` is refused, and the field that was probably meant."""
    renamed = RENAMED_FIELDS.get(name)
    hint = f" Did you mean {renamed}?" if renamed else did_you_mean(name, sft_fields(), "trainer.")
    return f"TRL's SFTConfig has no field {name}.{hint}"


def _check_layout(trainer: dict[str, Any], attention: str) -> Iterator[str]:
    """Rows in packs or without padding, which want flash attention."""
    packing, rows = trainer.get("packing"), trainer.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE)
    if packing and attention != "flash_attention_2" and rows > 1:
        yield (
            f"trainer.packing=true with trainer.per_device_train_batch_size={rows}: without flash attention the cost "
            "of attention grows with the square of all tokens of a batch. Write trainer.per_device_train_batch_size=1 "
            f"(and trainer.gradient_accumulation_steps={rows} for as many rows a step), or "
            "model.attn_implementation=flash_attention_2 on a GPU that has it."
        )
    if trainer.get("padding_free") and attention != "flash_attention_2":
        yield (
            "trainer.padding_free=true: it needs flash attention; and rows are laid out without padding here anyway. "
            "Leave it out, or add model.attn_implementation=flash_attention_2 on a GPU that has it."
        )
    if packing and trainer.get("max_length", 0) is None:
        yield "trainer.packing=true with trainer.max_length=null: packs need a length. Write trainer.max_length=1024."


def _check_pairs(trainer: dict[str, Any]) -> Iterator[str]:
    """Two settings that exclude or need each other."""
    if trainer.get("bf16") and trainer.get("fp16"):
        yield "trainer.bf16=true and trainer.fp16=true: only one is possible. Leave out both for the machine's best."
    prefetch = trainer.get("dataloader_prefetch_factor")
    if prefetch is not None and not trainer.get("dataloader_num_workers"):
        yield (
            f"trainer.dataloader_prefetch_factor={prefetch}: it is for worker processes. "
            "Add trainer.dataloader_num_workers=2."
        )
    old, new = trainer.get("gradient_checkpointing"), trainer.get("activation_checkpointing")
    if old is not None and new is not None and old != new:
        yield (
            f"trainer.gradient_checkpointing={spell(old)} and trainer.activation_checkpointing={spell(new)}: "
            "they are two names of one setting. Leave one out."
        )
    steps, warmup = trainer.get("max_steps", -1), trainer.get("warmup_steps", 0)
    if steps > 0 and warmup >= steps:
        yield (
            f"trainer.warmup_steps={spell(warmup)} with trainer.max_steps={steps}: the learning rate would never be "
            "reached. Write a share, such as trainer.warmup_steps=0.05."
        )
    evaluated, scheduler = trainer.get("eval_strategy", "no"), trainer.get("lr_scheduler_type")
    if evaluated == "steps" and trainer.get("eval_steps") is None:
        yield "trainer.eval_strategy=steps: it needs an interval. Add trainer.eval_steps=25."
    if evaluated == "no" and scheduler in ("reduce_lr_on_plateau", "greedy"):
        yield (
            f"trainer.lr_scheduler_type={scheduler}: it follows the validation loss. Add trainer.eval_strategy=epoch."
        )


def _check_best_checkpoint(trainer: dict[str, Any]) -> Iterator[str]:
    evaluated, saved = trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps")
    if saved == "best" and evaluated == "no":
        yield "trainer.save_strategy=best: the best follows from validation. Add trainer.eval_strategy=epoch."
    metric = trainer.get("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss"):
        yield (
            f"trainer.metric_for_best_model={metric}: validation measures the loss alone. "
            "Leave it out; answers are scored once, at the end."
        )
    if trainer.get("greater_is_better"):
        yield "trainer.greater_is_better=true: the best checkpoint has the least validation loss. Leave it out."
    if not trainer.get("load_best_model_at_end") or saved == "best":
        return
    eval_steps, save_steps = trainer.get("eval_steps"), trainer.get("save_steps", DEFAULT_SAVE_STEPS)
    if evaluated == "no":
        when = "epoch trainer.save_strategy=epoch" if saved == "no" else saved
        yield (
            f"trainer.load_best_model_at_end=true: the best follows from validation. Add trainer.eval_strategy={when}."
        )
    elif evaluated != saved:
        yield (
            f"trainer.load_best_model_at_end=true with trainer.eval_strategy={evaluated} and "
            f"trainer.save_strategy={saved}: they must be the same. Write trainer.save_strategy={evaluated}."
        )
    elif evaluated == "steps" and eval_steps and abs((ratio := save_steps / eval_steps) - round(ratio)) > 1e-6:
        yield (
            f"trainer.load_best_model_at_end=true with trainer.save_steps={save_steps}: each checkpoint needs an "
            f"evaluation, and there is one every trainer.eval_steps={eval_steps} steps. Write "
            f"trainer.save_steps={eval_steps}."
        )
