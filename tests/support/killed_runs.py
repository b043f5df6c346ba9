"""Runs that are killed: `killed_runs.py SEED KILLS SECONDS OVERRIDES` starts one again until it ends by itself.

Each start is a fork of this process, which has imported everything and computed nothing, and is killed after a random
part of SECONDS, but the last one. Prints after how many seconds each was killed, and what the last one took.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import run
from finetune.cli.compose import compose_config
from finetune.sweeps.preload import import_libraries


def start(overrides):
    """A process that does the run."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        run.run(compose_config(overrides))
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    seed, kills, seconds, *overrides = sys.argv[1:]
    import_libraries()
    moments = random.Random(int(seed))
    for _ in range(int(kills)):
        pid = start(overrides)
        time.sleep(moment := moments.uniform(0, float(seconds)))
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)[1] == 0
        print(f"killed after {moment:.2f} s" if not ended else "ended before", file=sys.stderr, flush=True)
        if ended:
            break
    started = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(overrides), 0)[1])
    print(time.monotonic() - started, file=sys.stderr)
    sys.exit(code)
