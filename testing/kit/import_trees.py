"""Packages of random layouts, and what comes of importing all of them: here or in a worker.

``python testing/kit/import_trees.py COUNT [SEED]`` compares so many of them, on this Python.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

# Imports each module that it is told, in order, and says what came of it; then what they hold.
IMPORT_ALL = """
def import_all(channel, names):
    import importlib, sys

    came = []
    for name in names:
        try:
            importlib.import_module(name)
            came.append([name, "there"])
        except Exception as exc:
            lost = "must be imported before finding" in str(exc)  # since 3.15
            came.append([name, "KeyError" if lost else type(exc).__name__])
    for name, module in sorted(list(sys.modules.items())):
        if module is not None and name.partition(".")[0] == names[0]:
            held = [one for one in vars(module).items() if type(one[1]) in (int, str)]
            plain = [list(one) for one in sorted(held) if not one[0].startswith("__")]
            came.append([name, sorted(getattr(module, "__all__", ())), plain])
    channel.send(came)
"""


class Tree:
    """A package with modules of all sorts, drawn from a seed."""

    def __init__(self, folder: Path, top: str, seed: int) -> None:
        self._random = random.Random(seed)
        self.top = top
        self.modules: dict[str, bool] = {top: True}  # and whether they are packages
        self._without_init: set[str] = set()
        for number in range(self._random.randint(3, 9)):
            packages = [name for name, is_package in self.modules.items() if is_package]
            name = f"{self._random.choice(packages)}.m{number}"
            self.modules[name] = self._random.random() < 0.4
            if self.modules[name] and self._random.random() < 0.3:
                self._without_init.add(name)
        for name, is_package in self.modules.items():
            path = folder.joinpath(*name.split("."))
            if is_package:
                path.mkdir(parents=True, exist_ok=True)
                (path / "data.txt").write_text(name)
            if name not in self._without_init:
                path = path / "__init__.py" if is_package else path.with_suffix(".py")
                path.write_text(self._source(name, is_package), "utf-8")

    @property
    def names(self) -> list[str]:
        """The modules, the package first, and one that is not there."""
        names = [*self.modules, f"{self.top}.nowhere"]
        head, rest = names[:1], names[1:]
        self._random.shuffle(rest)
        return head + rest

    def _source(self, name: str, is_package: bool) -> str:
        lines = [f"NAME = {name!r}", "NUMBER = 1"]
        for _ in range(self._random.randint(0, 4)):
            lines.append(self._random.choice(self._KINDS)(self, name, is_package))
        self._random.shuffle(lines)
        return "\n".join(lines) + "\n"

    def _other(self) -> str:
        return self._random.choice(list(self.modules))

    def _absolute(self, name: str, is_package: bool) -> str:
        return f"import {self._other()}"

    def _taken(self, name: str, is_package: bool) -> str:
        parent, _, leaf = self._other().rpartition(".")
        return f"from {parent} import {leaf} as taken" if parent else "import sys"

    def _relative(self, name: str, is_package: bool) -> str:
        dots = "." * self._random.randint(1, 3)
        return f"from {dots} import {self._other().rpartition('.')[2]} as relative"

    def _star(self, name: str, is_package: bool) -> str:
        return f"from {self._other()} import *"

    def _conditional(self, name: str, is_package: bool) -> str:
        return f"try:\n    from {self._other()} import absent\nexcept ImportError:\n    WITHOUT = 1"

    def _lazy(self, name: str, is_package: bool) -> str:
        if not is_package:
            return f"def later():\n    import {self._other()}"
        return (
            "def __getattr__(name):\n    if name == 'lazy':\n        return 7\n"
            "    raise AttributeError(name)"
        )

    def _all(self, name: str, is_package: bool) -> str:
        return "__all__ = ['NAME']"

    def _data(self, name: str, is_package: bool) -> str:
        package = name if is_package else name.rpartition(".")[0]
        return f"import pkgutil\nDATA = pkgutil.get_data({package!r}, 'data.txt').decode()"

    def _wrong(self, name: str, is_package: bool) -> str:
        if is_package:  # below one that fails Python itself says strange things of namespaces
            return "X = 1"
        return self._random.choice(
            ["raise ArithmeticError", "1 +", "import no_such_module", "X = 1"]
        )

    _KINDS = (
        _absolute, _taken, _relative, _star, _conditional, _lazy, _all, _data, _absolute, _taken,
        _wrong,
    )  # fmt: skip


def compare(folder: Path, seed: int) -> tuple[Any, Any]:
    """Return what comes of the tree of a seed: in a process with its folder, and in a worker.

    Where Python itself says KeyError, of a namespace below a package that failed, both are empty.
    """
    import execnet

    top = f"tree{seed}"
    tree = Tree(folder, top, seed)
    names = tree.names
    source = (
        f"{IMPORT_ALL}\nchannel.reconfigure(True, True)\nimport_all(channel, channel.receive())"
    )
    sys.path.insert(0, str(folder))
    try:
        with execnet.Group(["popen//chdir=/", "popen//chdir=/"]) as group:
            here, there = group
            path = (
                f"import sys; sys.path.insert(0, {str(folder)!r}); sys.dont_write_bytecode = True\n"
            )
            there.forward_imports([top])
            results = []
            for gateway, start in [(here, path), (there, "")]:
                channel = gateway.remote_exec(start + source)
                channel.send(names)
                results.append(channel.receive(60))
            says_so = any(one[1] == "KeyError" for one in results[0])
            return ([], []) if says_so else (results[0], results[1])
    finally:
        sys.path.remove(str(folder))


def main() -> None:
    count, seed = [*map(int, sys.argv[1:]), 0][:2]
    different = 0
    for number in range(seed, seed + count):
        with tempfile.TemporaryDirectory() as folder:
            here, there = compare(Path(folder), number)
        if here != there:
            different += 1
            print(f"seed {number}:")
            for one, other in zip(here, there, strict=False):
                if one != other:
                    print(f"   here {one}\n  there {other}")
    print(f"{count} trees, {different} different")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
