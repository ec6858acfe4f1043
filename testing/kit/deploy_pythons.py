"""Makes an environment with a package on each Python of this machine, by every tool that can.

``python testing/kit/deploy_pythons.py`` asks the index that pip is configured for, from here: the
workers are told to ask none.  ``--no-index`` asks none at all, which does but for Python 2.7.
``--python`` names some.  A tool that can't is no failure, as long as one of them can; what is left
half made is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
from interpreters import Interpreter, found
from wheels import make_wheel

from execnet import Group, xdeploy
from execnet._xdeploy import create, making

LADDER = list(create.LADDER)
CODE = "import {0} as module, sys; channel.send((module.__file__, sys.prefix))"


def tools_of(python: Interpreter) -> list[str]:
    """Return what each tool made of an environment; raises what the whole ladder raises."""
    said = []
    with tempfile.TemporaryDirectory() as folder, Group() as group:
        root, package = f"{folder}/cache", "six"
        options: dict[str, Any] = {"offline": True, "root": root}
        if making.configured is no_index:
            package = make_wheel(Path(folder), "sid").name.partition("-")[0]
            options["find_links"] = folder
        gateway = group.makegateway(python.spec)
        for ladder in [LADDER, *([tool] for tool in LADDER)]:
            create.LADDER[:] = ladder
            name = "-".join(ladder[0].split()) if len(ladder) == 1 else "all"
            begun = time.monotonic()
            try:
                made = xdeploy.create_venv_gateway(gateway, name, package, **options)
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


def no_index() -> dict[str, str]:
    """Stand in for what pip is configured for."""
    return {"no-index": "1"}


def main() -> int:
    """Go through the Pythons; return 1 if one of them has no tool at all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", metavar="VERSION", help="such as 3.13 or pypy")
    parser.add_argument("--no-index", action="store_true", help="use a wheel that is made here")
    options = parser.parse_args()
    if options.no_index:
        pytest.MonkeyPatch().setattr(making, "configured", no_index)
    pythons = [p for p in found() if any(map(p.meets, options.python or [str(p)]))]
    bad = 0
    for python in pythons:
        try:
            said = tools_of(python)
        except (xdeploy.DeployError, AssertionError, OSError, EOFError) as exc:
            bad += 1
            said = [f"BAD: {exc}"]
        print(f"{python}:", *said, sep="\n  ", flush=True)
    print(f"{len(pythons)} Pythons: {bad} bad")
    return 1 if bad or not pythons else 0


if __name__ == "__main__":
    sys.exit(main())
