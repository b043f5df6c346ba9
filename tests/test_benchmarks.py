"""Every benchmark measures all its sides; what it measures is no matter of a test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FEW = "trainer.max_steps=2 trainer.eval_steps=2 eval.max_prompts=2 eval.max_new_tokens=4 eval.retention=false"
BENCHMARKS = {
    "train_speed.py --rounds 1 --steps 1 --batch 2": r"run.py nf4 / TRL nf4: [\d.]+ times the speed",
    "read_speed.py --rounds 1 --rows 2000": r"finetune takes [\d.]+ times as long",
    f"plan_accuracy.py --only unquantised --set {FEW}": r"\| unquantised \| [\d.]+ GiB \|",
    f"sweep_speed.py --trials 2 --studied 9 --set {FEW}": r"process, \d+ at a time .* per hour[^$]*own time",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda command: command.split()[0])
def test_a_benchmark_runs(command):
    script, *options = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert re.search(BENCHMARKS[command], done.stdout, re.DOTALL), done.stdout


def test_every_benchmark_is_run():
    files = {file.name for file in (ROOT / "benchmarks").glob("*.py")}
    assert files == {command.split()[0] for command in BENCHMARKS}
