"""Environments over ssh on loopback, once they are there.

Arguments: ``warm``, how many times as long as a plain gateway to its first answer it takes to have
one and a worker in an environment behind it, both in alternation; or ``sync``, the milliseconds
to bring over a project of 200 modules of which one has changed.
"""

from __future__ import annotations

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


def measure(scaled: Scaled, what: str) -> Result:
    with sshd(Path.cwd()) as config:
        spec = f"ssh={HOST}//ssh_config={config}//python={sys.executable}"
        return warm(scaled, spec) if what == "warm" else sync(scaled, spec)


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
    package = Path.cwd() / "project" / "measured"
    package.mkdir(parents=True)
    modules = [package / f"module{number}.py" for number in range(scaled(MODULES))]
    for module in modules:
        module.write_text("value = 0\n" * 200)
    (package.parent / "pyproject.toml").write_text("[project]\nname = 'measured'\n")
    samples = []
    with execnet.Group() as group:
        worker = environment_of(group.makegateway(spec))
        project = xdeploy.SetupFile(package.parent)
        with project.sync_remote(worker, root=str(Path.cwd() / "cache")) as brought:
            for number in range(1, scaled(ROUNDS) + WARM_UP + 1):
                modules[0].write_text(f"value = {number}\n" * 200)
                started = perf_counter()
                if brought.once() != 1:
                    sys.exit("not just one file was brought there")
                samples.append(perf_counter() - started)
    return milliseconds(samples[WARM_UP:])


if __name__ == "__main__":
    main(measure)
