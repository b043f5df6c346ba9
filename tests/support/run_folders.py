"""A folder with the files that a complete run leaves, made in no time: what its models answered is given."""

import json

from finetune.cli.compose import compose_config
from finetune.config.settings import to_plain
from finetune.data.splits import Example
from finetune.evaluation.answer_cache import Reply
from finetune.evaluation.answers import Arm
from finetune.evaluation.generate import Answer
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.evaluation.verdict import describe_evaluation, list_predictions
from finetune.runs.files import write_text
from finetune.runs.folder import SELECTION

EXAMPLES = [{"place": "a.jsonl:9", "spans": [("context", "Say <b>9</b>"), ("loss", "9<|im_end|>")]}]


def leave_run(
    folder, *overrides, tuned, base=None, metrics=("exact_match",), system="Answer.", likelihoods=None, split="test"
):
    """Leave the run in the folder; `tuned` and `base` are answers to prompts whose references are 0, 1, 2 and so on.

    On the `split` validation it is a search's trial.
    """
    config = compose_config([*overrides, "data.metrics=[" + ",".join(metrics) + "]"])
    examples = [
        Example(
            [{"role": "system", "content": system}, {"role": "user", "content": f"Say {i}"}], str(i), f"a.jsonl:{i}"
        )
        for i in range(len(tuned))
    ]
    prompts = Prompts(PromptSet(examples, None, []), [], list(metrics), config.eval, 16, config.data.seed, split)
    likelihoods = likelihoods or [None] * len(tuned)

    def arm(texts):
        answers = [Answer(text, len(text), True) for text in texts]
        return Arm([[Reply(*pair) for pair in zip(answers, likelihoods, strict=True)]], 1.0, False)

    arms = {"zero_shot": arm(base or ["?"] * len(tuned))} if split == "test" else {}
    arms["tuned"] = arm(tuned)
    history = [
        {"step": 5 * i, "loss": 2 / i, "learning_rate": 1e-3, "tokens": 100 * i, "train_seconds": float(i)}
        for i in range(1, 9)
    ]
    history += [{"step": 20 * i, "eval_loss": 1 / i, "tokens": 400 * i, "train_seconds": 4.0 * i} for i in (1, 2)]
    result = {
        "name": folder.name,
        "status": "complete",
        "seed": config.seed,
        "config": to_plain(config),
        "data": {
            "fingerprint": "f" * 64,
            "counts": {"train": 9},
            "bad_rows": [],
            "shared": [],
            "splits": {},
            "examples": EXAMPLES,
        },
        "model": {"path": "tiny", "licence": None, "parameters": 1000, "trainable_parameters": 10},
        "training": {
            "steps": 40,
            "epochs": 1.0,
            "tokens": 800,
            "tokens_per_second": 100.0,
            "train_loss": 0.25,
            "validation_loss": 0.5,
            "peak_memory_bytes": 2**30,
            "resumed_from_step": 0,
        },
        "evaluation": describe_evaluation(prompts, arms, None),
        "seconds": {"train": 8.0, "evaluate": 2.0},
        "versions": {"python": "3.11"},
    }
    answered = "predictions" if split == "test" else "validation_predictions"
    for name, rows in ((answered, list_predictions(prompts, arms)), ("history", history)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder / ("result.json" if split == "test" else SELECTION), json.dumps(result))
    return folder


def answers(right, count):
    """Answers to `count` prompts of which those in `right` are as the reference."""
    return [str(i) if i in right else "no" for i in range(count)]
