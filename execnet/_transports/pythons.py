"""Finding an interpreter on an unknown machine, by means of its shell.

Start at ``search_words``.
"""

from __future__ import annotations

import re
import sys

NEWEST, OLDEST = 20, 6  # the minor versions of Python 3 to look for
_VERSION = re.compile(r"(pypy|)(\d+(?:\.\d+){0,2}|)")
_PYENV = '"${PYENV_ROOT:-$HOME/.pyenv}"/versions'
_UV = '"${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}"'
_ANY = "python3 /usr/libexec/platform-python python"


def is_version(wanted: str | None) -> bool:
    """Whether a text is a version, such as "3.12" or "pypy3.11"."""
    match = _VERSION.fullmatch(wanted or "")
    return match is not None and bool(match[2])


def search_words(wanted: str | None) -> list[str]:
    """Return a command that prints the path of an interpreter, or fails if there is none.

    wanted: a version such as "3.12" or "pypy3.11"; "auto" for the version that runs this, or else
    the newest one found; or a path or a name.  For None, the command is empty.
    """
    if wanted is None:
        return []
    # What is found may be a script that starts another.
    then = '"$p" -c "import sys;print(sys.executable)" </dev/null'
    return ["sh", "-c", search_script(wanted, then)]


def search_script(wanted: str, then: str) -> str:
    """Return shell code that finds an interpreter as ``$p``, and runs ``then`` with it.

    It contains no newlines and no "!", which a shell around it might change.
    """
    match = _VERSION.fullmatch(wanted)
    if wanted == "auto":
        mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
        newest_first = " ".join(f"3.{minor}" for minor in range(NEWEST, OLDEST - 1, -1))
        loop = f"for v in {newest_first};do {_try(_places('python', '$v', '$v'), '', then)};done"
        parts = [_try_version("", mine, then), loop, _try(_ANY, "", then)]
    elif match is not None and wanted:
        parts = [_try_version(match[1], match[2], then)]
    else:
        parts = [_try("'" + wanted.replace("'", "'\"'\"'") + "'", "", then)]
    return ";".join([*parts, "exit 1"])


def _try_version(kind: str, version: str, then: str) -> str:
    """Try all places where a version may be, under all names that it may have."""
    minor = ".".join(version.split(".")[:2])
    paths = _places(kind or "python", minor, f"{kind}{version}")
    numbers = tuple(int(part) for part in version.split(".") if part)
    check = f"import sys;v=sys.version_info[:{len(numbers)}];p=hasattr(sys,'pypy_version_info');"
    check += f"sys.exit(not(v=={numbers} and p=={bool(kind)}))"
    return _try(f"{paths} {'pypy3 pypy' if kind else _ANY}", check, then)


def _places(kind: str, minor: str, version: str) -> str:
    """Return where a version may be: the PATH, the usual folders, those of pyenv and uv."""
    name = f"{kind}{minor}"
    programs = [name, f"/usr/bin/{name}", f"/usr/local/bin/{name}", f"/opt/homebrew/bin/{name}"]
    uv = f"{_UV}/{'cpython' if kind == 'python' else kind}-{version.removeprefix(kind)}*/bin/python"
    return " ".join([*programs, f"{_PYENV}/{version}*/bin/python", uv])


def _try(paths: str, check: str, then: str) -> str:
    test = f'"$p" -c "{check}" </dev/null >/dev/null 2>&1'
    return f'for p in {paths};do command -v "$p" >/dev/null 2>&1&&{test}&&{{ {then};exit;}};done'
