"""How fast is a file of a million lines checked, against reading it with the datasets library?

    python benchmarks/read_speed.py [--rounds 3] [--rows 1000000]

Both sides read the same JSONL file of prompts and completions, about 100 bytes a line, each in a process of its own, in
turn, without the time to import Python modules. The datasets library starts without a cache and converts the file to
Arrow. Ours reads every line strictly and checks its columns. Medians of the rounds; ratios within one round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("finetune", "datasets")


def main() -> None:
    """Write the file, measure both sides in every round and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FILE"), help="measure one side in this process")
    options = parser.parse_args()
    if options.side:
        side, file = options.side
        print(check(Path(file)) if side == "finetune" else read_with_datasets(file))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write_rows(Path(folder), options.rows)
        size = file.stat().st_size / 1e6
        print(f"{options.rows:,} lines, {size:.0f} MB")
        rounds = [{side: in_own_process(side, file) for side in SIDES} for _ in range(options.rounds)]
    for side in SIDES:
        seconds = statistics.median(r[side] for r in rounds)
        print(f"{side:10} {seconds:6.2f} s  {options.rows / seconds:12,.0f} lines/s  {size / seconds:5.0f} MB/s")
    ratios = [r["finetune"] / r["datasets"] for r in rounds]
    print(f"finetune takes {statistics.median(ratios):.2f} times as long as datasets (target: at most 2)")


def write_rows(folder: Path, count: int) -> Path:
    """A file of `count` different rows."""
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as target:
        for number in range(count):
            row = {
                "prompt": f"What is the name of street number {number} in this town?",
                "completion": f"Its name: {number * 7919}",
            }
            target.write(json.dumps(row) + "\n")
    return file


def in_own_process(side: str, file: Path) -> float:
    """The seconds of one side, measured in a fresh process."""
    command = [sys.executable, __file__, "--side", side, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def check(file: Path) -> float:
    """Seconds to read every row strictly and check its columns."""
    sys.path.insert(0, str(ROOT))
    from finetune.config.schema import Data, Source
    from finetune.data.columns import check_row, find_columns, find_recipe
    from finetune.data.rows import read_rows

    data = Data(source=Source.local, path=str(file), recipe="prompt_completion")
    started = time.perf_counter()
    columns = find_columns(data, find_recipe(data))
    for _, row in read_rows(file):
        check_row(row, columns, data)
    return time.perf_counter() - started


def read_with_datasets(file: str) -> float:
    """Seconds that the datasets library takes to read the file, with no cache to begin with."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
