"""How far is the plan of a run from the run? Peak memory and time, predicted and measured.

    python benchmarks/plan_accuracy.py [--only NAME ...] [--default] [--set KEY=VALUE ...]

Each configuration is planned (stage=plan) and then run, each in a process of its own, one after the other, without
answers of the base model that are known already. They are short runs of the embedded model and data; --default adds the
whole `python run.py`. Seconds are those of result.json: prepare, load, train and evaluate, without the start of Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sweep_speed import without_known_answers

ROOT = Path(__file__).resolve().parent.parent
SHORT = (
    "trainer.max_steps=12",
    "trainer.eval_steps=6",
    "trainer.save_strategy=no",
    "eval.max_prompts=16",
    "eval.max_new_tokens=64",
)
RUNS: dict[str, tuple[str, ...]] = {
    "nf4": SHORT,
    "int8": (*SHORT, "quantization=int8"),
    "unquantised": (*SHORT, "quantization=none"),
    "all weights": (*SHORT, "quantization=none", "adapter=full"),
    "batch of 16": (*SHORT, "trainer.per_device_train_batch_size=16"),
    "activations recomputed": (*SHORT, "trainer.activation_checkpointing=true"),
    "packed to 1024 tokens": (*SHORT, "trainer.packing=true", "trainer.per_device_train_batch_size=1"),
    "60 long answers": (*SHORT, "trainer.max_steps=4", "eval.max_prompts=60", "eval.max_new_tokens=128"),
}


def main() -> None:
    """Plan and run each configuration and print the table of errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--default", action="store_true", help="also the whole default run")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of every run")
    options = parser.parse_args()
    runs = ({"python run.py": ()} if options.default else {}) | {name: RUNS[name] for name in options.only}
    print("| run | memory: plan | measured | error | time: plan | measured | error |")
    print("|---|---|---|---|---|---|---|")
    for name, settings in runs.items():
        plan, result = compare((*settings, *options.set))
        peak = result["peak_memory_bytes"]
        planned, took = (sum(one["seconds"].values()) for one in (plan, result))
        memory = row(plan["memory"]["peak_bytes"] / 2**30, peak / 2**30, "GiB")
        print(f"| {name} | {memory} | {row(planned, took, 's')} |", flush=True)
        print(f"{name}: plan {plan['seconds']}, run {result['seconds']}", file=sys.stderr, flush=True)


def compare(settings: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan.json and the result.json of a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run.py"), *settings]
        command += ["tracking=none", f"output_dir={folder}", "name=run"]
        environment = without_known_answers(Path(folder, "cache"))
        for stage in ("plan", "train"):
            quiet = {"stdout": subprocess.DEVNULL, "env": environment, "cwd": ROOT}
            subprocess.run([*command, f"stage={stage}"], check=True, **quiet)
        plan, result = (json.loads((Path(folder) / "run" / f"{name}.json").read_text()) for name in ("plan", "result"))
        return plan, result


def row(predicted: float, measured: float, unit: str) -> str:
    """Three columns of the table."""
    digits = 2 if unit == "GiB" else 0
    return f"{predicted:.{digits}f} {unit} | {measured:.{digits}f} {unit} | {predicted / measured - 1:+.0%}"


if __name__ == "__main__":
    main()
