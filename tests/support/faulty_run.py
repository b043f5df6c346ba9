"""run.py, some of whose runs end badly; the learning rate tells how."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import hydra

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
spec = importlib.util.spec_from_file_location("program", ROOT / "run.py")
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


def fail():
    raise ValueError("something broke")


def tell_a_secret():
    raise ValueError(f"the service refused {os.environ['MY_SERVICE_PASSWORD']}")


def take_too_much_memory():
    import torch

    torch.empty(10**15)


ENDINGS = {
    2e-3: fail,
    3e-3: lambda: sys.exit(3),
    4e-3: lambda: os.kill(os.getpid(), signal.SIGKILL),
    5e-3: lambda: time.sleep(1000),
    6e-3: take_too_much_memory,
    7e-3: lambda: os._exit(0),
    8e-3: tell_a_secret,
}


def run(config, *given):
    ending = ENDINGS.get(config.trainer["learning_rate"])
    if ending:
        ending()
    return program.run(config, *given)


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(config):
    return program.run_job(run, config)


if __name__ == "__main__":
    program.start_program(main)
