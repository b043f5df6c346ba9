"""A sweep's trials run as jobs of a Slurm cluster; one that is pre-empted goes on from its newest checkpoint."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The smallest cluster: one node, whose two processors may be more than the machine has; a job of the partition `urgent`
# pre-empts one of `main`, which is queued again.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MailProg=/bin/true
MinJobAge=300
KillWait=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """A cluster of this machine alone; skipped where Slurm is not installed, but never in CI."""
    programs = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS}
    if missing := [name for name, place in programs.items() if not place]:
        if os.environ.get("CI"):
            pytest.fail(f"{', '.join(missing)} not found; install slurm-wlm and munge")
        pytest.skip(f"{', '.join(missing)} not found")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = dict(zip(("controller", "daemon"), free_ports(2), strict=True))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=user(), **ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # of which nothing is asked
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    started = []
    try:
        for name, arguments in DAEMONS.items():
            command = [programs[name], *(text.format(folder=folder) for text in arguments)]
            with (folder / f"{name}.log").open("w") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(lambda: "idle" in slurm_says("sinfo", "--noheader", "--format=%t"), 30, folder)
        yield folder
    finally:
        subprocess.run(["scancel", "--state=RUNNING,PENDING", "--full", f"--user={user()}"], check=False)
        for daemon in reversed(started):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


DAEMONS = {
    "munged": [
        "--foreground",
        "--force",
        "--key-file={folder}/key",
        "--socket={folder}/munge.sock",
        "--pid-file={folder}/munged.pid",
        "--seed-file={folder}/munge.seed",
        "--log-file={folder}/munged.log",
    ],
    "slurmctld": ["-D", "-i", "-f", "{folder}/slurm.conf"],
    "slurmd": ["-D", "-f", "{folder}/slurm.conf"],
}


@pytest.mark.slow
def test_four_trials_run_as_jobs_and_the_one_that_is_pre_empted_goes_on_from_its_checkpoint(slurm, tiny_run, tmp_path):
    asked = ["-m", "hydra/launcher=submitit_slurm", "adapter.r=2,4", "trainer.learning_rate=1e-3,1e-4", *tiny_run]
    asked += ["trainer.max_steps=100", "trainer.save_steps=5", "trainer.eval_strategy=no"]
    sweep = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *asked], cwd=ROOT)
    outputs = tmp_path / "outputs"
    wait_until(lambda: list(outputs.glob("*/checkpoints/checkpoint-*/trainer_state.json")), 60, slurm)
    said = subprocess.run(
        ["sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1"], check=True, capture_output=True
    )
    print(said)
    print(slurm_says("squeue"), slurm_says("scontrol", "show", "job"))
    t = time.monotonic()
    while sweep.poll() is None:
        print(round(time.monotonic() - t), slurm_says("squeue", "--noheader"))
        time.sleep(2)
    assert sweep.wait() == 0
    results = [json.loads(file.read_text()) for file in outputs.glob("*/result.json")]
    print([result["training"]["resumed_from_step"] for result in results])
    assert [result["status"] for result in results] == ["complete"] * 4


def user():
    import getpass

    return getpass.getuser()


def slurm_says(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_until(condition, seconds, folder):
    limit = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(file.read_text()[-1500:] for file in folder.glob("*.log"))
        assert time.monotonic() < limit, logs
        time.sleep(0.2)


def free_ports(count):
    """Ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
