"""Jobs of Kubernetes whose pods dial in: the manifest, and pods of a stand-in for kubectl."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_gone
from test_join import KEY, ticket  # noqa: F401  fixtures
from tools import BOUND_S, clean_environment, missing, wait_until

import execnet
from execnet import Group
from execnet._cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pods run Linux")

# Like kubectl and a cluster: it runs the pods of a Job, each with what the manifest gives it, and
# starts one anew that fails.
KUBECTL = f"""\
#!{sys.executable}
import json, os, subprocess, sys
assert sys.argv[1:] == ["create", "-f", "-"], sys.argv
job = json.load(sys.stdin)
spec = job["spec"]
template = spec["template"]["spec"]
assert template["restartPolicy"] == "OnFailure"
assert (spec["completionMode"], spec["completions"]) == ("Indexed", spec["parallelism"])
(container,) = template["containers"]
name = job["metadata"]["generateName"] + "x7k2p"
for index in range(spec["completions"]):
    environment = {{"PATH": os.environ["PATH"], "HOSTNAME": f"{{name}}-{{index}}"}}
    environment["JOB_COMPLETION_INDEX"] = str(index)
    for variable in container["env"]:
        reference = variable["valueFrom"]["secretKeyRef"]
        path = os.path.join(os.environ["SECRETS"], reference["name"], reference["key"])
        with open(path) as file:
            environment[variable["name"]] = file.read()
    words = ["sh", "-c", 'until "$@"; do :; done', "sh", *container["command"]]
    subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
print(f"job.batch/{{name}} created")
"""


def manifest(ticket: str, count: int) -> str:  # noqa: F811
    """Return what ``execnet join`` prints."""
    words = ["join", ticket, "--print-kubernetes-job", "python:3.13", str(count)]
    command = [sys.executable, "-m", "execnet", *words]
    environment = clean_environment()
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(
    sys.version_info >= (3, 14) or sys.implementation.name != "cpython",
    reason="kubernetes-validate is not in the environments of these",
)
def test_the_manifest_is_valid_and_without_the_key(ticket: str) -> None:  # noqa: F811
    text = manifest(ticket, 3)
    job = json.loads(text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (container["image"], KEY.hex() in text) == ("python:3.13", False)
    try:
        validator = importlib.import_module("kubernetes_validate")
    except ImportError:
        missing("kubernetes-validate, which has the schemas of Kubernetes")
    newest = validator.latest_version()
    validator.validate(job, newest, strict=True)
    container["comand"] = container.pop("command")
    with pytest.raises(validator.ValidationError):
        validator.validate(job, newest, strict=True)


def test_each_pod_is_a_worker_and_one_that_is_evicted_is_replaced(
    group: Group,
    ticket: str,  # noqa: F811
    tmp_path: Path,
    nothing_is_left: None,
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    secret = tmp_path / "secrets" / "execnet-key" / "key"
    secret.parent.mkdir(parents=True)
    secret.write_text(f"{KEY.hex()}\n")
    subprocess.run(
        [kubectl, "create", "-f", "-"],
        input=manifest(ticket, 2),
        env=clean_environment(SECRETS=str(tmp_path / "secrets"), PATH=os.environ["PATH"]),
        text=True,
        check=True,
        timeout=BOUND_S,
    )
    pods = {gateway._rinfo().rank: gateway for gateway in group.wait_for(2, BOUND_S)}
    infos = [pods[rank]._rinfo() for rank in (0, 1)]
    assert [(one.launcher, one.job) for one in infos] == [("Kubernetes", "execnet-x7k2p")] * 2
    os.kill(infos[1].pid, signal.SIGKILL)
    with pytest.raises(execnet.WorkerDied, match=r"\(rank 1 of Kubernetes job execnet-x7k2p"):
        pods[1].newchannel().receive(BOUND_S)
    group.wait_for(2, BOUND_S)
    (again,) = [gateway for gateway in group if gateway is not pods[0]]
    assert (again._rinfo().rank, again is pods[1]) == (1, False)
    pids = [infos[0].pid, again._rinfo().pid]
    group.terminate(timeout=BOUND_S)
    wait_until(lambda: all(map(is_gone, pids)), BOUND_S)


def test_a_job_has_some_pods(ticket: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert main(["join", ticket, "--print-kubernetes-job", "python:3.13", "0"]) == 2
    assert "not a number of workers" in capsys.readouterr().err
