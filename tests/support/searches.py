"""A search on a study in a file, with no run behind its trials."""

from finetune.config.schema import Sweep
from finetune.runs.outcome import Outcome, RunState
from finetune.search.settings import SearchSettings
from finetune.search.space import read_space
from finetune.search.storage import open_storage
from finetune.search.study import SearchStudy

PARAMS = {
    "trainer.learning_rate": "tag(log,interval(1e-5,1e-2))",
    "adapter.r": "choice(4,8,16)",
    "adapter": "choice(lora,rslora)",
    "adapter.lora_dropout": "interval(0.0,0.2)",
    "trainer.per_device_train_batch_size": "int(interval(1,8))",
}
CONDITIONS = {"adapter.lora_dropout": "adapter=lora"}
DEFAULTS = {"trainer.learning_rate": 1e-3, "adapter.r": 16, "adapter": "lora", "adapter.lora_dropout": 0.0}


def journal(folder):
    return str(folder / "study.journal")


def open_search(folder, space=None, **settings):
    """The search whose study is in a folder, by default in the space of PARAMS and without pruning."""
    space = space or read_space(PARAMS, [], CONDITIONS)
    settings = SearchSettings(**{"n_trials": 12, "pruner": "none", **settings})
    return SearchStudy(open_storage(journal(folder)), "s", space, settings, higher_is_better=True)


def run_search(folder, space=None, value=lambda point: point["trainer.learning_rate"], **settings):
    """The settings that a search has tried, in its order, and the search; `value` is what a run with them reaches."""
    search = open_search(folder, space, **settings)
    search.enqueue_first(DEFAULTS.get)
    tried = []
    for number, overrides in search:
        tried.append(overrides)
        search.tell(number, Outcome(RunState.complete), [value(search.study.trials[number].params)])
    return tried, search


def trial_section(folder, number, pruner):
    """The `sweep` section of the configuration of a search's trial."""
    return Sweep(name="s", study=journal(folder), trial=number, pruner=pruner)
