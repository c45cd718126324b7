"""What of the launch scripts can be checked without a cloud: that shells and parsers read them, and the restarts."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jukebox_jax.cli.main import main

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]

# Says that it listens, and then does as it is told: ends with its argument, or with 0 when it gets SIGTERM.
TRAINER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(int(sys.argv[2]))))
print("training", flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_read(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_the_readme_names_every_file():
    named = set(re.findall(r"^\| `([\w.]+)`", (LAUNCH / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert named | {"README.md", "Dockerfile"} == {path.name for path in LAUNCH.iterdir() if path.is_file()}


def test_the_job_set_runs_the_trainer_on_each_slice():
    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text(encoding="utf-8"))
    (job,) = job_set["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]
    assert hosts["parallelism"] == hosts["completions"]
    pod = hosts["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert hosts["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
    assert container["command"][:3] == ["experiments/launch/restartable.sh", "jukebox-jax", "train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", ["cloud_tpu.sh", "gke_xpk.sh", "jobset.yaml", "slurm.sbatch"])
def test_the_trainer_knows_the_options_that_the_scripts_give_it(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    text = (LAUNCH / script).read_text(encoding="utf-8")
    command = text[re.search(r"jukebox-jax\W+train", text).end() :].partition("resources:")[0]
    used = set(re.findall(r"--(?!config\.)[a-z-]+", re.split(r"\n\n|\|\|", command)[0]))
    assert {"--hosts", "--out"} <= used
    assert used <= known


def start(*arguments: str) -> subprocess.Popen:
    command = [LAUNCH / "restartable.sh", sys.executable, "-c", TRAINER, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    return process


@pytest.mark.parametrize("status", [0, 2])
def test_a_command_that_ends_by_itself_gives_its_own_status(status):
    assert start(str(status), "0").wait(timeout=20) == status


@pytest.mark.parametrize(("status", "told"), [(0, 143), (1, 1)])
def test_sigterm_reaches_the_command_and_is_told_to_the_scheduler(status, told):
    process = start("wait", str(status))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == told
