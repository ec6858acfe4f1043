"""What a local factory and a service save, against an sshd on loopback.

Fresh programs make an ssh gateway, by turns with a login of their own and through a warm factory;
others attach to a running service.  Prints medians; the exit status is 1 if the warm gateway took
more than the given share of the time of a fresh one, if many gateways took more than one login, or
if attaching took longer than allowed, apart from importing what it loads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import execnet
from benchmarks.programs._sshd import HOST, sshd
from execnet import service

NAME = "factory-proof"

# Prints the milliseconds of one gateway to its first answer.
GATEWAY = """
import sys, time
import execnet
group = execnet.Group()
if sys.argv[2]:
    group.setlocalfactory(name=sys.argv[2])
begun = time.perf_counter()
group.makegateway(sys.argv[1]).remote_exec("channel.send(1)").receive(60)
print(1000 * (time.perf_counter() - begun), flush=True)
group.terminate(5)
"""
# Prints the modules that attaching loads.
LOADED = """
import json, sys
import execnet
before = set(sys.modules)
group = execnet.Group()
group.makegateway(sys.argv[1])
print(json.dumps([name for name in sys.modules if name not in before]), flush=True)
group.terminate(5)
"""
# Prints the milliseconds to import these modules, and those of attaching after that.
ATTACH = """
import importlib, json, sys, time
import execnet
begun = time.perf_counter()
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
imported = time.perf_counter()
group = execnet.Group()
group.makegateway(sys.argv[1])
attached = time.perf_counter()
print(json.dumps([1000 * (imported - begun), 1000 * (attached - imported)]), flush=True)
group.terminate(5)
"""


def run(program: str, *arguments: str) -> str:
    """Run a program; return its output."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    ).stdout


def compare_starts(spec: str, count: int, pause_s: float) -> tuple[float, float]:
    """Return the milliseconds of a gateway with a login of its own, and through the factory."""
    run(GATEWAY, spec, NAME)  # from now on it is warm
    fresh, warm = [], []
    for _ in range(count):
        time.sleep(pause_s)
        fresh.append(float(run(GATEWAY, spec, "")))
        time.sleep(pause_s)
        warm.append(float(run(GATEWAY, spec, NAME)))
    return statistics.median(fresh), statistics.median(warm)


def count_logins(spec: str, gateways: int) -> int:
    """Return how many logins the workers of many gateways have come from."""
    with execnet.Group() as group:
        group.setlocalfactory(name=NAME)
        group.makegateways([spec] * gateways)
        channels = group.remote_exec("import os; channel.send(os.getppid())")
        return len(set(channels.receive_each()))


def measure_attaching(count: int) -> tuple[float, float]:
    """Return the milliseconds of the imports, and of attaching after them."""
    spec = f"socketservice={NAME}"
    modules = run(LOADED, spec)
    pairs = [json.loads(run(ATTACH, spec, modules)) for _ in range(count)]
    imports, attaching = zip(*pairs, strict=True)
    return statistics.median(imports), statistics.median(attaching)


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--count", type=int, default=20, help="how many programs of each kind (20)")
    add("--gateways", type=int, default=20, help="that should take one login (20)")
    add("--pause", type=float, default=1.0, metavar="S", help="between programs (1)")
    add("--share", type=float, default=0.2, help="of the time of a fresh gateway (0.2)")
    add("--attach", type=float, default=3.0, metavar="MS", help="more than the imports (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="factory-") as name:
        folder = Path(name)
        (folder / "home").mkdir(mode=0o700)
        (folder / "run").mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each program would compile it all
        with sshd(folder / "home") as config:
            try:
                spec = f"ssh={HOST}//ssh_config={config}"
                fresh, warm = compare_starts(spec, options.count, options.pause)
                logins = count_logins(spec, options.gateways)
                imports, attaching = measure_attaching(options.count)
            finally:  # the sshd ends after the login that the service keeps
                for found in service.find_all():
                    found.stop()
    print(
        f"an ssh gateway to its first answer: fresh {fresh:.1f} ms, through a warm factory"
        f" {warm:.1f} ms, {warm / fresh:.3f} of it, at most {options.share:g} are allowed\n"
        f"{options.gateways} gateways: {logins} login{'' if logins == 1 else 's'}\n"
        f"attaching to a service: {attaching:.2f} ms, at most {options.attach:g} are allowed,"
        f" after {imports:.1f} ms of imports"
    )
    return int(warm > options.share * fresh or logins != 1 or attaching > options.attach)


if __name__ == "__main__":
    sys.exit(main())
