"""Makes an environment with a package on each Python of this machine, by every tool that can.

``python testing/kit/deploy_pythons.py`` asks the index that pip is configured for, from here: the
workers are told to ask none.  ``--python`` names some, ``--package`` another package.  A tool that
can't is no failure, as long as one of them can; nothing half made is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from interpreters import Interpreter, found

from execnet import Group, xdeploy
from execnet._xdeploy import create

LADDER = list(create.LADDER)
PACKAGE = "six"
CODE = "import {0} as module, sys; channel.send((module.__file__, sys.prefix))"


def tools_of(python: Interpreter, package: str) -> list[str]:
    """Return what each tool made of an environment; raises what the whole ladder raises."""
    said = []
    with tempfile.TemporaryDirectory() as root, Group() as group:
        gateway = group.makegateway(python.spec)
        for ladder in [LADDER, *([tool] for tool in LADDER)]:
            create.LADDER[:] = ladder
            name = "-".join(ladder[0].split()) if len(ladder) == 1 else "all"
            begun = time.monotonic()
            try:
                made = xdeploy.create_venv_gateway(gateway, name, package, offline=True, root=root)
            except xdeploy.DeployError as exc:
                left = [path.name for path in Path(root).glob(f"venvs/{name}-*/*")]
                assert left in ([], ["lock"]), left
                if ladder == LADDER:
                    raise
                said.append(f"{ladder[0]}: {str(exc).splitlines()[-1].strip()}")
                continue
            path, prefix = made.remote_exec(CODE.format(package)).receive(60)
            tool = made.venv.tool  # type: ignore[attr-defined]
            assert path.startswith(prefix), (path, prefix)
            said.append(f"{name}: made by {tool} in {time.monotonic() - begun:.1f} s")
    return said


def main() -> int:
    """Go through the Pythons; return 1 if one of them has no tool at all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", metavar="VERSION", help="such as 3.13 or pypy")
    parser.add_argument("--package", default=PACKAGE, help=f"({PACKAGE})")
    options = parser.parse_args()
    pythons = [p for p in found() if any(map(p.meets, options.python or [str(p)]))]
    bad = 0
    for python in pythons:
        try:
            said = tools_of(python, options.package)
        except (xdeploy.DeployError, AssertionError, OSError, EOFError) as exc:
            bad += 1
            said = [f"BAD: {exc}"]
        print(f"{python}:", *said, sep="\n  ", flush=True)
    print(f"{len(pythons)} Pythons: {bad} bad")
    return 1 if bad or not pythons else 0


if __name__ == "__main__":
    sys.exit(main())
