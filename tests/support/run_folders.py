"""A folder with the files that a complete run leaves, made in no time: what its models answered is given."""

from finetune.cli.compose import compose_config
from finetune.config.settings import changed_settings, to_plain
from finetune.data.splits import Example
from finetune.evaluation.answer_cache import Reply
from finetune.evaluation.answers import Arm
from finetune.evaluation.generate import Answer
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.evaluation.scores import describe_evaluation, list_predictions
from finetune.runs.read import CompletedRun, write_answers, write_result
from finetune.runs.result import DataResult, ExampleSpans, ModelResult, RunResult, TrainingResult

EXAMPLES = [ExampleSpans("a.jsonl:9", [("context", "Say <b>9</b>"), ("loss", "9<|im_end|>")])]


def write_run(
    folder, *overrides, tuned, base=None, metrics=("exact_match",), system="Answer.", likelihoods=None, split="test"
):
    """Write the run into the folder; `tuned` and `base` are answers to prompts whose references are 0, 1, 2 and so on.

    On the `split` validation it is a search's trial.
    """
    config = compose_config([*overrides, "data.metrics=[" + ",".join(metrics) + "]"])
    prompts = made_prompts(config, len(tuned), metrics, system, split)
    arms = {"zero_shot": made_arm(base or ["?"] * len(tuned), likelihoods)} if split == "test" else {}
    arms["tuned"] = made_arm(tuned, likelihoods)
    result = made_result(config, describe_evaluation(prompts, arms, None, {}), folder.name)
    run = CompletedRun(folder, result, list_predictions(prompts, arms), made_history())
    write_answers(run)
    write_result(run)
    return folder


def made_prompts(config, count, metrics, system="Answer.", split="test"):
    examples = [
        Example(
            [{"role": "system", "content": system}, {"role": "user", "content": f"Say {i}"}], str(i), f"a.jsonl:{i}"
        )
        for i in range(count)
    ]
    return Prompts(PromptSet(examples, None, []), None, list(metrics), config.eval, 16, config.data.seed, split)


def made_arm(texts, likelihoods=None):
    """An arm that answered with these texts."""
    answers = [Answer(text, len(text), True) for text in texts]
    replies = [Reply(*pair) for pair in zip(answers, likelihoods or [None] * len(texts), strict=True)]
    return Arm(replies, 1.0, False, "float32")


def made_history():
    history = [
        {"step": 5 * i, "loss": 2 / i, "learning_rate": 1e-3, "tokens": 100 * i, "train_seconds": float(i)}
        for i in range(1, 9)
    ]
    return history + [{"step": 20 * i, "eval_loss": 1 / i, "tokens": 400 * i, "train_seconds": 4.0 * i} for i in (1, 2)]


def made_result(config, evaluation, name="made"):
    return RunResult(
        name=name,
        seed=config.seed,
        config=to_plain(config),
        changed_settings=changed_settings(to_plain(config), to_plain(compose_config([]))),
        data=DataResult("f" * 64, {"train": 9}, [], [], {}, EXAMPLES),
        model=ModelResult({"path": "tiny", "licence": None}, 1000, 10),
        training=TrainingResult(40, 1.0, 800, 400, 8.0, 100.0, 0.25, 0.5, 2**30, 0, 0, 8, 2, 0.1),
        evaluation=evaluation,
        peak_memory_bytes=2**30,
        seconds={"train": 8.0, "evaluate": 2.0},
        versions={"python": "3.11"},
    )


def answers(right, count):
    """Answers to `count` prompts of which those in `right` are as the reference."""
    return [str(i) if i in right else "no" for i in range(count)]
