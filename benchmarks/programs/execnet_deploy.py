"""Environments over ssh on loopback, once they are there.

Arguments: ``warm``, how many times as long as a plain gateway to its first answer it takes to have
one and a worker in an environment behind it, both in alternation; ``sync``, the milliseconds
to bring over a project of 200 modules of which one has changed; or ``first``, the same for a
worker that has just started.  ``other`` as well has another build of Python over there, the newest
one that the tests would find.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from _measure import Result, Scaled, main, milliseconds
from _sshd import HOST, sshd

import execnet
from execnet import xdeploy

MODULES = 200
ROUNDS = 5
WARM_UP = 1


def measure(scaled: Scaled, what: str, which: str = "same") -> Result:
    python = sys.executable if which == "same" else other_python()
    with sshd(Path.cwd()) as config:
        spec = f"ssh={HOST}//ssh_config={config}//python={python}"
        return {"warm": warm, "sync": sync, "first": first}[what](scaled, spec)


def other_python() -> str:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "testing" / "kit"))
    from interpreters import found

    for python in reversed(found()):
        if python.implementation == "cpython" and python.version >= (3, 8):
            command = [python.path, "-c", "import sys, venv; print(sys.version)"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0 and answer.stdout.strip() != sys.version:
                return python.path
    sys.exit("there is no other Python here")


def warm(scaled: Scaled, spec: str) -> Result:
    pairs = [(seconds(spec, True), seconds(spec, False)) for _ in range(scaled(ROUNDS) + WARM_UP)]
    return {"samples": [deployed / plain for deployed, plain in pairs[WARM_UP:]]}


def seconds(spec: str, in_environment: bool) -> float:
    with execnet.Group() as group:
        started = perf_counter()
        worker = group.makegateway(spec)
        if in_environment:
            worker = environment_of(worker)
        worker.remote_exec("channel.send(1)").receive()
        return perf_counter() - started


def environment_of(gateway: execnet.Gateway) -> execnet.Gateway:
    return xdeploy.create_venv_gateway(gateway, "measured", root=str(Path.cwd() / "cache"))


def sync(scaled: Scaled, spec: str) -> Result:
    project, changing = project_here(scaled)
    samples = []
    with execnet.Group() as group:
        worker = environment_of(group.makegateway(spec))
        with project.sync_remote(worker, root=str(Path.cwd() / "cache")) as brought:
            for number in range(1, scaled(ROUNDS) + WARM_UP + 1):
                changing.write_text(f"value = {number}\n" * 200)
                started = perf_counter()
                if brought.once() != 1:
                    sys.exit("not just one file was brought there")
                samples.append(perf_counter() - started)
    return milliseconds(samples[WARM_UP:])


def first(scaled: Scaled, spec: str) -> Result:
    project, changing = project_here(scaled)
    samples = []
    for number in range(scaled(ROUNDS) + WARM_UP):
        with execnet.Group() as group:
            worker = environment_of(group.makegateway(spec))
            changing.write_text(f"value = {number}\n" * 200)
            started = perf_counter()
            project.sync_remote(worker, root=str(Path.cwd() / "cache"))
            samples.append(perf_counter() - started)
    return milliseconds(samples[WARM_UP:])


def project_here(scaled: Scaled) -> tuple[xdeploy.SetupFile, Path]:
    """Return a project, and one of its modules."""
    package = Path.cwd() / "project" / "measured"
    package.mkdir(parents=True)
    modules = [package / f"module{number}.py" for number in range(scaled(MODULES))]
    for module in modules:
        module.write_text("value = 0\n" * 200)
    (package.parent / "pyproject.toml").write_text("[project]\nname = 'measured'\n")
    return xdeploy.SetupFile(package.parent), modules[0]


if __name__ == "__main__":
    main(measure)
