"""How long does a sweep of eight short trials take, and where does a trial's time go?

    python benchmarks/sweep_speed.py [--rounds 1] [--trials 8] [--prompts 8] [--studied 1000] [--set KEY=VALUE ...]

The embedded default at eight learning rates, 12 steps of batch 2 in nf4, each trial validated once on 15 rows and
answering eight held-out prompts, up to 32 tokens each: as so many separate `python run.py`, with Hydra's basic
launcher, and with this pipeline's own, one trial at a time on all cores and one on each core. All start without the
base model's answers, which the trials of one side share. Makespan in seconds; medians of the rounds; ratios within one
round. Then: what the search itself adds to a trial when the study already holds `--studied` others.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.data.embedded import cache_folder
from finetune.runs.result import RunResult, read_result

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "load", "train", "evaluate", "judge")
CORES = len(os.sched_getaffinity(0))
SIDES = {
    "separate run.py": [],
    "hydra/launcher=basic": ["hydra/launcher=basic"],
    "process, one at a time": ["hydra.launcher.n_jobs=1"],
    f"process, {CORES} at a time": [f"hydra.launcher.n_jobs={CORES}"],
}
SHORT = [
    "quantization=nf4",
    "trainer.max_steps=12",
    "trainer.per_device_train_batch_size=2",
    "trainer.eval_steps=12",
    "data.validation_fraction=0.01",
    "eval.max_new_tokens=32",
    "eval.retention=false",
    "tracking=none",
]


@dataclass(frozen=True)
class Measured:
    """One side of one round, in seconds."""

    makespan: float
    # Mean over the trials, by stage; `start` is what the stages leave of a trial's own time.
    stages: dict[str, float]


def main() -> None:
    """Measure every side in every round, print the table of ratios, and where the time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--studied", type=int, default=1000, help="trials in the study of the last figure")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of every trial")
    options = parser.parse_args()
    rounds: list[dict[str, Measured]] = []
    for number in range(options.rounds):
        rounds.append({})
        for side in SIDES:
            rounds[-1][side] = measured = measure(side, options)
            print(f"round {number + 1}: {side:24} {measured.makespan:6.1f} s", flush=True)
    show(rounds, options.trials)
    show_load()
    show_overhead(options.studied)


def measure(side: str, options: argparse.Namespace) -> Measured:
    """Run all trials of one side, with the downloads but without the answers of earlier runs."""
    rates = [f"{1e-4 * 1.5**i:.3g}" for i in range(options.trials)]
    with tempfile.TemporaryDirectory() as folder:
        environment = without_known_answers(Path(folder, "cache"))
        shared = [*SHORT, f"eval.max_prompts={options.prompts}", f"output_dir={folder}/outputs", *options.set]
        started = time.perf_counter()
        if SIDES[side]:
            call(["-m", f"trainer.learning_rate={','.join(rates)}", *SIDES[side], *shared], environment)
        else:
            for rate in rates:
                call([f"trainer.learning_rate={rate}", *shared], environment)
        makespan = time.perf_counter() - started
        results = [read_result(file) for file in Path(folder, "outputs").glob("*/result.json")]
        seconds = [result.seconds for result in results if isinstance(result, RunResult)]
        assert len(seconds) == options.trials
        at_a_time = CORES if side.endswith("at a time") and "one" not in side else 1
    stages = {stage: statistics.fmean(by_stage[stage] for by_stage in seconds) for stage in STAGES}
    return Measured(makespan, {"start": makespan * at_a_time / len(seconds) - sum(stages.values()), **stages})


def without_known_answers(cache: Path) -> dict[str, str]:
    """The environment of a run that finds all downloads in the new folder `cache`, but no answers of earlier runs."""
    cache.mkdir()
    for item in cache_folder().iterdir():
        if item.name != "base_answers":
            (cache / item.name).symlink_to(item)
    return os.environ | {"FINETUNE_CACHE": str(cache)}


def call(arguments: list[str], environment: dict[str, str]) -> None:
    """Run run.py; exit if it fails."""
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode:
        sys.exit(f"run.py {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def show(rounds: list[dict[str, Measured]], trials: int) -> None:
    """Print makespans, ratios to the first side, and the mean trial of each side by stage."""
    separate, *_ = SIDES
    for side in SIDES:
        makespan = statistics.median(sides[side].makespan for sides in rounds)
        ratio = statistics.median(sides[separate].makespan / sides[side].makespan for sides in rounds)
        hourly = 3600 * trials / makespan
        print(f"{side:24} {makespan:6.1f} s, {hourly:5.0f} trials per hour, {ratio:.2f} x separate runs")
    print("target: 1.6 x separate runs\n\nA trial's seconds, waiting for a core included:")
    print(f"{'':24}" + "".join(f"{stage:>10}" for stage in ("start", *STAGES)))
    for side in SIDES:
        means = [statistics.median(sides[side].stages[stage] for sides in rounds) for stage in ("start", *STAGES)]
        print(f"{side:24}" + "".join(f"{seconds:10.1f}" for seconds in means))


def show_load() -> None:
    """Print what importing, reading the weights and quantising them take, in a process of their own."""
    code = """
import time
started = time.perf_counter()
from finetune.machine.libraries import import_trainer, silence_all
silence_all()
import_trainer()
from finetune.cli.compose import compose_config
from finetune.machine.device import choose_device
from finetune.model.base import load_base
from finetune.reporting import report
from finetune.training import trainer
print(f"imports {time.perf_counter() - started:.1f} s", end="")
for quantization in ("none", "nf4"):
    config = compose_config([f"quantization={quantization}"])
    machine = choose_device(config.model, config.quantization, config.adapter)
    started = time.perf_counter()
    load_base(config.model, config.quantization, machine)
    print(f", load with quantization={quantization} {time.perf_counter() - started:.1f} s", end="")
print()
"""
    print("\nOf a fresh process: ", end="", flush=True)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


def show_overhead(studied: int) -> None:
    """Print what asking for, recording and telling a trial take when the study holds so many."""
    import optuna
    import yaml

    from finetune.config.schema import Sweep
    from finetune.runs.outcome import Outcome, RunState
    from finetune.runs.sweep_record import TrialRecord, open_sweep_record
    from finetune.search.settings import SearchSettings
    from finetune.search.space import read_space
    from finetune.search.storage import open_storage, read_ahead
    from finetune.search.study import SearchStudy, load_trial, suggest_value

    timed = 20
    preset = yaml.safe_load((ROOT / "conf" / "sweep" / "lora_basics.yaml").read_text())["hydra"]["sweeper"]
    space = read_space(preset["params"], [], preset["conditions"])
    settings = SearchSettings(n_trials=studied + timed, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        journal = f"{folder}/study.journal"
        search = SearchStudy(open_storage(journal), "s", space, settings, higher_is_better=True)
        sampler, search.study.sampler = search.study.sampler, optuna.samplers.RandomSampler(seed=0)
        record = open_sweep_record(folder, "s", [])
        for number in range(studied):
            trial = search.study.ask()
            space.point(partial(suggest_value, trial))
            for step in range(5):
                trial.report(step, step)
            search.study.tell(trial, trial.params["trainer.learning_rate"])
            record.trials[number] = TrialRecord(number, ["a=1"], folder, RunState.complete, "", 1.0, 0.5)
        record.write(*record.trials.values())
        search.study.sampler = sampler
        studies: Mapping[str, optuna.storages.JournalStorage] = {}
        started = time.perf_counter()
        for number, overrides in search:
            record.begin(number, overrides, Path(folder), RunState.running)
            studies = read_ahead(journal, studies)
            if not (pid := os.fork()):  # as a trial is forked from a process that has read the study
                trial = load_trial(Sweep(name="s", study=journal, trial=number, pruner="median"), studies)
                for step in range(5):
                    trial.report(1e6, step)
                    trial.should_prune()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            search.tell(number, Outcome(RunState.complete), [0.5])
            record.end(number, Outcome(RunState.complete, score=0.5))
        seconds = (time.perf_counter() - started) / timed
    what = "asking, recording, asking the pruner five times, telling"
    print(f"\nThe search's own time for a trial after {studied} ({what}): {seconds:.3f} s (target 0.2)")


if __name__ == "__main__":
    main()
