"""Runs as they are planned: prepared, with the prompts that they will answer, but without a model."""

from dataclasses import replace

from transformers import AutoConfig, AutoTokenizer

from finetune.cli.compose import compose_config
from finetune.data.embedded import embedded_model
from finetune.data.splits import Example, load_splits
from finetune.evaluation.prompts import PromptSet
from finetune.machine.device import choose_device
from finetune.planning.workload import AnswerBatch, AnswerWorkload, Workload, plan_prompts
from finetune.runs.folder import run_folder
from finetune.training.prepare import prepare_run


def planned_run(*overrides):
    """What is planned for `python run.py OVERRIDES`."""
    config = compose_config(list(overrides))
    machine = choose_device(config.model, config.quantization, config.adapter)
    prepared = prepare_run(config, load_splits(config.data), machine, run_folder(config))
    return plan_prompts(config, prepared, machine)


def asking(run, *lengths):
    """The run, asked zero-shot prompts of about so many tokens, no two of which begin alike, and nothing else."""
    prompts = [[{"role": "user", "content": f"{i} {'word ' * length}"}] for i, length in enumerate(lengths)]
    examples = [Example(prompt, "answer", f"prompt {number}") for number, prompt in enumerate(prompts)]
    zero_shot = PromptSet(examples, [{"labels": [1]}] * len(examples), [])
    return replace(run, prompts=replace(run.prompts, zero_shot=zero_shot, few_shot=None))


def without_weights(folder, **shape):
    """Overrides of a llama of this shape: its folder has a configuration and a tokenizer, and no weights."""
    AutoConfig.for_model("llama", **shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model("smollm2_135m")).save_pretrained(folder)
    return ["model=local", f"model.path={folder}"]


def answers(prompts, batch_size, new_tokens, references):
    """So many prompts of three tokens each."""
    rows = [min(batch_size, prompts - start) for start in range(0, prompts, batch_size)]
    batches = [AnswerBatch(count, 3, 1) for count in rows]
    return AnswerWorkload([[1, 2, 3]] * prompts, batches, new_tokens, references)


def workload(**changes):
    """Ten steps of a hundred token positions each, and nothing else but the changes."""
    nothing = {"validations": 0, "validation_positions": 0, "largest_validation": None, "largest": [], "typical": []}
    asked = {"answers": None, "few_shot": None, "candidates": [], "candidate_answers": 0}
    evaluation = asked | {"passages": 0, "questions": 0}
    training = {"steps": 10, "epochs": 1.0, "rows_per_step": 4, "samples": 40, "tokens": 900, "token_positions": 1000}
    return Workload(**(training | nothing | evaluation | changes))
