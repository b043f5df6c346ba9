"""What is advised makes the run fit, the cheapest first."""

import json

import pytest
from support.plans import asking, planned_run

import run
from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.planning.memory import MemoryNeed, estimate_memory
from finetune.planning.remedies import Remedy, advise_remedies, find_remedies
from finetune.runs.folder import run_folder

MIB = 2**20


def need_of(planned, share):
    """The need of the run where that share of its peak is available."""
    need = estimate_memory(planned, held=0)[2]
    planned.config.plan.memory_gib = share * need.peak / 2**30
    return MemoryNeed(need.phases, round(planned.config.plan.memory_gib * 2**30), 0, need.answered_at_a_time)


@pytest.fixture
def long_prompts(tiny_run, tmp_path):
    """Overrides of a run whose activations are most of what it needs."""
    words = [f"w{i * 7919 % 1000}" for i in range(6000)]
    rows = [{"prompt": " ".join(words[i * 50 : i * 50 + 120]), "completion": f"{i}"} for i in range(100)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [
        "data=local",
        f"data.path={tmp_path / 'long.jsonl'}",
        "trainer.per_device_eval_batch_size=1",
        "data.max_train_rows=null",
    ]
    few = ["eval.max_prompts=1", "eval.shots=0"]
    return [*tiny_run, "force=false", *data, *few, "trainer.per_device_train_batch_size=64", "name=long"]


@pytest.mark.slow
def test_a_run_that_will_not_fit_is_refused_and_the_first_remedy_makes_it_fit(long_prompts):
    for _ in range(2):  # the process itself grows on the first
        estimate = estimate_memory(planned_run(*long_prompts))[2]
    small = f"plan.memory_gib={(estimate.peak - 60 * MIB) / 2**30}"
    planned = planned_run(*long_prompts, small)
    need = estimate_memory(planned)[2]
    remedies = list(find_remedies(planned, need))
    costs = [remedy.settings.partition("=")[0] for remedy in remedies]
    assert costs[:2] == ["trainer.activation_checkpointing", "trainer.per_device_train_batch_size"]
    with pytest.raises(UserError, match=f"will not fit.*cheapest first: {remedies[0].settings} "):
        run.run(planned.config)
    assert not (run_folder(planned.config) / "adapter").exists()
    run.run(compose_config([*long_prompts, small, *remedies[0].settings.split()]))
    assert (run_folder(planned.config) / "result.json").exists()


@pytest.mark.slow
def test_a_smaller_batch_keeps_the_effective_one_and_leaves_the_run_as_it_was(long_prompts):
    planned = planned_run(*long_prompts, "trainer.activation_checkpointing=true")
    remedy = next(find_remedies(planned, need_of(planned, 0.98)))
    assert remedy.settings == "trainer.per_device_train_batch_size=32 trainer.gradient_accumulation_steps=2"
    assert planned.prepared.settings.per_device_train_batch_size == 64


@pytest.mark.slow
def test_a_smaller_batch_of_answers_costs_nothing_but_time(tiny_run):
    small = ("trainer.per_device_train_batch_size=1", "trainer.per_device_eval_batch_size=1")
    planned = asking(planned_run(*tiny_run, *small, "eval.batch_size=40"), *[800] * 40)
    need = need_of(planned, 0.99)
    assert need.peak_phase == "answers"
    first = next(find_remedies(planned, need))
    name, _, rows = first.settings.partition("=")
    assert name == "eval.batch_size" and int(rows) < 40
    assert first.cost == "nothing but time" and first.peak_bytes <= need.available


@pytest.mark.slow
def test_where_nothing_makes_a_run_fit_the_advice_says_so(tiny_run):
    planned = planned_run(*tiny_run)
    assert list(find_remedies(planned, need_of(planned, 0.01))) == []
    assert advise_remedies([]).startswith("No setting that the plan knows makes it fit")


def test_the_advice_names_settings_peak_and_cost():
    remedies = [Remedy("a.b=1", "some speed", 3 * 2**29), Remedy("quantization=nf4", "a little accuracy", 2**30)]
    assert advise_remedies(remedies) == (
        "What makes it fit, the cheapest first: a.b=1 (to 1.50 GiB; costs some speed); "
        "quantization=nf4 (to 1.00 GiB; costs a little accuracy)."
    )
