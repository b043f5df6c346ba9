"""Settings of the section `trainer` that are wrong alone or beside each other."""

import pytest

from finetune.cli.trainer_rules import trainer_problems

TRAINER = {"eval_strategy": "steps", "eval_steps": 25, "save_strategy": "steps", "save_steps": 25}
RULES = [
    (
        {"packing": True, "max_length": 512, "per_device_train_batch_size": 8},
        "trainer.packing=true with trainer.per_device_train_batch_size=8: without flash attention",
    ),
    (
        {"max_steps": 10, "warmup_steps": 10},
        "trainer.warmup_steps=10 with trainer.max_steps=10: the learning rate would never be reached",
    ),
    ({"shuffle_dataset": True}, "trainer.shuffle_dataset=true: every epoch is shuffled by seed"),
    ({"max_seq_length": 512}, "trainer.max_seq_length=512: TRL's SFTConfig has no field max_seq_length"),
    ({"warmup_ratio": 0.1}, "Did you mean trainer.warmup_steps"),
    ({"learning_rate": "fast"}, "trainer.learning_rate=fast: expected a number"),
    ({"max_steps": 2.5}, "trainer.max_steps=2.5: expected an integer"),
    ({"packing": 1}, "trainer.packing=1: expected true or false"),
    ({"lr_scheduler_type": "cosin"}, "Did you mean cosine?"),
    ({"eval_strategy": False}, 'write "no" in quotes'),
    ({"learning_rate": 0.0}, "trainer.learning_rate=0.0: it must be above 0"),
    ({"max_steps": 0}, "trainer.max_steps=0: it must be at least 1, or -1"),
    ({"output_dir": "x"}, "trainer.output_dir=x: a run has its own folder. Write output_dir=FOLDER"),
    ({"run_name": "x"}, "Write name=NAME"),
    ({"seed": 0}, "trainer.seed=0: one seed is for everything. Write seed=N"),
    ({"model_init_kwargs": {}}, "Write model.dtype"),
    ({"trust_remote_code": True}, "Write model.trust_remote_code=true"),
    ({"push_to_hub": True}, "a run publishes nothing"),
    ({"hub_token": "abc"}, "trainer.hub_token=***: a secret does not belong in a configuration"),
    ({"resume_from_checkpoint": "x"}, "the same command continues its run"),
    ({"report_to": "wandb"}, "trainer.report_to=wandb: numbers are sent by tracking=wandb"),
    ({"pad_token": "x"}, "trainer.pad_token=x: it is deprecated in TRL"),
    ({"use_liger_kernel": True}, "trainer.use_liger_kernel=true: it is deprecated in TRL"),
    ({"truncation_mode": "keep_end"}, "Write trainer.truncation_mode=keep_start"),
    ({"loss_type": "chunked_nll"}, "Write trainer.loss_type=nll"),
    ({"packing": True, "max_length": None}, "packs need a length"),
    ({"bf16": True, "fp16": True}, "trainer.bf16=true and trainer.fp16=true: only one is possible"),
    ({"eval_steps": None}, "trainer.eval_strategy=steps: it needs an interval"),
    ({"metric_for_best_model": "foo"}, "trainer.metric_for_best_model=foo: validation measures the loss"),
    ({"fsdp": "full_shard"}, "trainer.fsdp=full_shard: a model in shards can neither be saved nor answer here"),
    (
        {"auto_find_batch_size": True},
        "trainer.auto_find_batch_size=true: it would change the batch size without a word",
    ),
    ({"greater_is_better": True}, "trainer.greater_is_better=true: the best checkpoint has the least validation loss"),
    (
        {"save_strategy": "best", "eval_strategy": "no"},
        "trainer.save_strategy=best: the best follows from validation",
    ),
    ({"load_best_model_at_end": True, "save_steps": 30}, "Write trainer.save_steps=25"),
    ({"load_best_model_at_end": True, "eval_strategy": "no"}, "Add trainer.eval_strategy=steps"),
    ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "they must be the same"),
    ({"lr_scheduler_type": "greedy", "eval_strategy": "no"}, "it follows the validation loss"),
    ({"dataloader_prefetch_factor": 2}, "Add trainer.dataloader_num_workers=2"),
    ({"gradient_checkpointing": True, "activation_checkpointing": False}, "two names of one setting"),
]


@pytest.mark.parametrize(("changes", "promised"), RULES, ids=[text for _, text in RULES])
def test_each_rule_says_what_is_wrong_and_what_to_write(changes, promised):
    assert any(promised in problem for problem in trainer_problems(TRAINER | changes, "sdpa"))


def test_sound_settings_pass():
    assert not list(trainer_problems(TRAINER, "sdpa"))


def test_flash_attention_may_pack_and_leave_out_the_padding():
    settings = TRAINER | {"packing": True, "max_length": 512, "padding_free": True}
    assert not list(trainer_problems(settings, "flash_attention_2"))
    assert len(list(trainer_problems(settings, "sdpa"))) == 2
