"""Trials that other launchers run are recorded; a job of Slurm that is pre-empted goes on from its checkpoint."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.run_folders import answers, write_run

from finetune.cli.compose import compose_config
from finetune.cli.main import start_program
from finetune.runs.folder import hold_run
from finetune.runs.lock import BusyError
from finetune.runs.outcome import RunState
from finetune.runs.sweep_record import sweep_name
from finetune.sweeps.other_launchers import run_submitted_trial

ROOT = Path(__file__).parents[2]
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
        slurm_says("scancel", "--full", f"--user={user()}")  # what a test that failed has left
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


def test_a_trial_in_its_launchers_process_is_recorded_unless_its_process_is_to_end(tmp_path):
    config = compose_config(["tracking=none", f"output_dir={tmp_path / 'outputs'}", "sweep.name=grid"])

    def fail(config):
        raise ValueError("something broke")

    outcome = run_submitted_trial(fail, config, 0, ["seed=1"])
    [line] = record(tmp_path, "grid")
    assert outcome.state is RunState.failed and line["state"] == "failed" and "something broke" in line["reason"]
    with pytest.raises(SystemExit):  # so does submitit, once it has queued the job again
        run_submitted_trial(lambda config: sys.exit(-1), config, 0, ["seed=1"])
    assert record(tmp_path, "grid")[0]["state"] == "running"


def test_a_name_that_reads_as_a_number_is_the_same_for_the_sweep_and_its_trials(monkeypatch, tmp_path):
    asked = ["-m", "hydra/launcher=basic", "seed=1,2", "tracking=none", f"output_dir={tmp_path}"]
    command = next(given for seed in range(1000) if sweep_name(given := [*asked, f"data.seed={seed}"]).isdigit())
    monkeypatch.setattr(sys, "argv", ["run.py", *command])
    begun = []
    with pytest.raises(SystemExit) as ended:
        start_program(lambda: begun.extend(sys.argv[1:]))
    assert ended.value.code == 1  # for no trial ran
    assert compose_config(begun[-1:]).sweep.name == sweep_name(command)
    assert (tmp_path / "sweeps" / sweep_name(command) / "sweep.json").exists()


def test_a_run_that_another_process_has_completed_meanwhile_is_not_done_again(tmp_path):
    write_run(tmp_path / "run", tuned=answers({0, 1}, 3))
    with pytest.raises(BusyError, match="has completed this run"), hold_run(compose_config([]), tmp_path / "run"):
        pass


@pytest.mark.slow
def test_four_trials_run_as_jobs_and_the_one_that_is_pre_empted_goes_on_from_its_checkpoint(slurm, tiny_run, tmp_path):
    asked = ["-m", "hydra/launcher=submitit_slurm", "adapter.r=2,4", "trainer.learning_rate=1e-3,1e-4", *tiny_run]
    asked += ["trainer.max_steps=100", "trainer.save_steps=5", "trainer.eval_strategy=no", "sweep.name=grid"]
    with (tmp_path / "out").open("w") as out:
        sweep = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *asked], cwd=ROOT, stdout=out, stderr=out)
    try:
        checkpoints = "*/checkpoints/checkpoint-*/trainer_state.json"
        wait_until(lambda: list((tmp_path / "outputs").glob(checkpoints)), 180, slurm)
        urgent = ["sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1"]
        subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
        restarts = []
        while sweep.poll() is None:
            restarts += re.findall(r"Restarts=1", slurm_says("scontrol", "show", "job"))
            time.sleep(1)
    finally:
        sweep.kill()
    told = (tmp_path / "out").read_text()
    assert sweep.wait() == 0 and restarts, told
    lines = record(tmp_path, "grid")
    results = [json.loads((Path(line["folder"]) / "result.json").read_text()) for line in lines]
    assert [line["state"] for line in lines] == [result["status"] for result in results] == ["complete"] * 4
    assert sum((result["training"]["resumed_from_step"] or 0) > 0 for result in results) == 1
    assert all(f"trial {line['number']} adapter.r=" in told for line in lines)
    assert "4 trials for hydra/launcher=submitit_slurm" in told


@pytest.mark.slow
def test_other_launchers_record_how_trials_end_and_the_exit_code_tells(tiny_run, tmp_path):
    faulty = [
        sys.executable,
        str(ROOT / "tests" / "support" / "faulty_run.py"),
        "-m",
        "hydra/launcher=submitit_local",
        *tiny_run,
    ]
    asked = [*faulty, "trainer.learning_rate=1e-3,2e-3", "sweep.name=pair"]  # the second raises an error
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    complete, failed = record(tmp_path, "pair")
    assert (complete["state"], failed["state"]) == ("complete", "failed") and complete["score"] is not None
    assert "ValueError: something broke" in failed["reason"] and "ValueError: something broke" in done.stdout
    reasons = json.loads((Path(failed["folder"]) / "result.json").read_text())
    assert reasons["status"] == "failed"


def record(folder, name):
    return json.loads((folder / "outputs" / "sweeps" / name / "sweep.json").read_text())["trials"]


def user():
    return pwd.getpwuid(os.getuid()).pw_name


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
