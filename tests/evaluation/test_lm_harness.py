"""Tasks of lm-evaluation-harness, defined here and read from here, on the base and on the tuned model."""

import json
import math
import os
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import run
from finetune.cli.compose import compose_config
from finetune.config.harness_tasks import tasks_need_hub
from finetune.config.schema import Eval
from finetune.errors import UserError
from finetune.evaluation.lm_harness import load_harness_tasks, score_harness_tasks
from finetune.machine.device import choose_device
from finetune.machine.libraries import silence_libraries
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
from finetune.reporting.wandb_summary import summarise_result
from finetune.runs.folder import complete_result, run_folder

DOCUMENTS = [{"question": f"What follows {n}?", "choices": [str(n - 1), str(n + 1), "a cow"]} for n in range(8)]
COMMON = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
CHOICE = (
    "task: what_follows\noutput_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\ndoc_to_target: 1\n"
    "doc_to_choice: '{{{{choices}}}}'\nmetric_list: [{{metric: acc}}]\n"
)
TEXT = (
    "task: reading\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{question}}}}'\n"
    "metric_list: [{{metric: byte_perplexity}}]\n"
)
ANSWER = (
    "task: saying\noutput_type: generate_until\ndoc_to_text: '{{{{question}}}}'\ndoc_to_target: '{{{{choices[1]}}}}'\n"
    "generation_kwargs: {{until: ['\\n'], max_gen_toks: 8}}\nmetric_list: [{{metric: exact_match}}]\n"
)


@pytest.fixture
def tasks(tmp_path):
    """A folder of three tasks on the same documents."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, own in (("choice", CHOICE), ("text", TEXT), ("answer", ANSWER)):
        (folder / f"{name}.yaml").write_text((own + COMMON).format(data=folder / "documents.jsonl"))
    return folder


@torch.no_grad()
def log_likelihood(scored, context, continuation):
    """Summed over the continuation's tokens, in nats."""
    ids = torch.tensor([context + continuation])
    logs = scored(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logs.gather(-1, ids[0, 1:, None])[len(context) - 1 :].sum().item()


def by_hand(scored, tokenizer):
    """Accuracy on the choices and perplexity per byte of the questions."""
    right, total, size = 0, 0.0, 0
    for document in DOCUMENTS:
        question, choices = document["question"], document["choices"]
        asked = tokenizer(question)["input_ids"]
        likely = [
            log_likelihood(scored, asked, tokenizer(f"{question} {choice}")["input_ids"][len(asked) :])
            for choice in choices
        ]
        right += likely.index(max(likely)) == 1
        total += log_likelihood(scored, [tokenizer.bos_token_id], asked)
        size += len(str(question).encode())
    return right / len(DOCUMENTS), math.exp(-total / size)


@pytest.mark.slow
def test_local_tasks_are_scored_on_the_base_and_on_the_tuned_model(tiny_run, tasks, tiny_model, capsys):
    learning = ["trainer.learning_rate=5e-2", "trainer.max_steps=6", "eval.shots=0"]
    config = compose_config([*tiny_run, *learning, f"eval.harness_tasks=[{tasks}]"])
    run.run(config)
    folder = run_folder(config)
    result = complete_result(config, folder)
    found = result.evaluation.harness
    assert found.keys() == {"what_follows", "reading", "saying"}
    assert set(found["saying"]) == {"exact_match"}

    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base = by_hand(plain, tokenizer)
    tuned = by_hand(PeftModel.from_pretrained(plain, folder / "adapter"), tokenizer)
    assert base[1] != pytest.approx(tuned[1], rel=1e-3)
    for arm, (accuracy, perplexity) in (("base", base), ("tuned", tuned)):
        assert getattr(found["what_follows"]["acc"], arm) == accuracy
        assert getattr(found["reading"]["byte_perplexity"], arm) == pytest.approx(perplexity, rel=1e-4)
        spread = accuracy * (1 - accuracy) / (len(DOCUMENTS) - 1)
        assert getattr(found["what_follows"]["acc"], f"{arm}_stderr") == pytest.approx(math.sqrt(spread))

    shown = capsys.readouterr()
    assert shown.err == ""
    assert "lm-evaluation-harness: tuned model scored in" in shown.out
    assert "what_follows" in shown.out and f"{tuned[1]:.3f} ±" in shown.out
    assert f"{tuned[1]:.3f} ±" in (folder / "report.html").read_text()
    sent = summarise_result(result)
    assert sent["harness/reading/byte_perplexity/tuned"] == found["reading"]["byte_perplexity"].tuned


@pytest.mark.slow
def test_the_limit_is_the_number_of_documents(tiny_model, tasks):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    values = []
    for limit in (2, None):
        settings = Eval(harness_tasks=[str(tasks / "text.yaml")], harness_limit=limit)
        found = score_harness_tasks(plain, tokenizer, load_harness_tasks(settings), {}, lambda _: None)
        values.append(found["reading"]["byte_perplexity"].base)
        assert found["reading"]["byte_perplexity"].tuned == values[-1]
    assert values[0] != values[1]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's, about merging
def test_the_harness_leaves_trained_embeddings_in_their_place(tiny_model, tasks):
    config = compose_config(
        [
            "model=local",
            f"model.path={tiny_model}",
            "model.dtype=float32",
            "quantization=none",
            "adapter.modules_to_save=[lm_head]",
        ]
    )
    machine = choose_device(config.model, config.quantization, config.adapter)
    tuned = add_adapter(load_base(config.model, config.quantization, machine), config.adapter, config.seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
        ids = torch.tensor([[5, 6, 7, 8]])
        before = tuned.eval()(input_ids=ids).logits
        settings = Eval(harness_tasks=[str(tasks / "text.yaml")])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        score_harness_tasks(tuned, tokenizer, load_harness_tasks(settings), {}, lambda _: None)
        assert torch.equal(tuned(input_ids=ids).logits, before)


def test_without_the_extra_the_command_to_install_it_is_told(monkeypatch, tiny_run):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        compose_config([*tiny_run, "eval.harness_tasks=[mmlu]"])
    assert str(error.value) == (
        "eval.harness_tasks=[mmlu]: EleutherAI's lm-evaluation-harness is not installed. Install it with: "
        "pip install -c constraints.txt -e '.[harness]'"
    )


def test_what_is_wrong_with_tasks_is_told_before_training(tiny_run, tasks):
    for wrong, told in (
        ("[./nowhere.yaml]", "./nowhere.yaml: there is no such .yaml file"),
        (f"[{tasks}/text.yaml,{tasks}/text.yaml]", "is named more than once"),
    ):
        with pytest.raises(UserError, match=told):
            compose_config([*tiny_run, f"eval.harness_tasks={wrong}"])
    with pytest.raises(UserError, match=r"eval\.harness_limit=3: it has no effect here"):
        compose_config([*tiny_run, "eval.harness_limit=3"])
    (tasks / "documents.jsonl").unlink()
    with pytest.raises(UserError, match=r"text.yaml could not be loaded: .*documents.jsonl.*Check the task's file"):
        load_harness_tasks(Eval(harness_tasks=[str(tasks / "text.yaml")]))


@pytest.mark.slow
def test_a_name_that_the_harness_does_not_know_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"the harness knows no task hellaswog\. Did you mean hellaswag\?"):
        load_harness_tasks(Eval(harness_tasks=["hellaswog"]))


def test_the_hub_is_needed_for_names_and_for_files_that_read_from_it(tasks, tmp_path):
    assert tasks_need_hub(["mmlu"])
    assert not tasks_need_hub([]) and not tasks_need_hub([str(tasks)])
    (tmp_path / "other.yaml").write_text("task: other\ndataset_path: EleutherAI/x\n")
    assert tasks_need_hub([str(tasks), str(tmp_path / "other.yaml")])


def test_libraries_are_offline_unless_a_task_needs_the_hub(monkeypatch, tiny_run, tasks):
    for given, offline in ((f"[{tasks}]", "1"), ("[mmlu]", None)):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        silence_libraries(compose_config([*tiny_run, f"eval.harness_tasks={given}"]))
        assert os.environ.get("HF_HUB_OFFLINE") == offline
