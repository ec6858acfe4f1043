"""``execnet venv``: make an environment on the far side, list environments, prune them.

Start at ``_run``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..gateway import Gateway
from ..gateway_base import ExecnetError
from ..xspec import XSpec
from .info import format_table
from .session import STATUS_FAILED, CommandError, Session, supervise
from .words import SPEC_HELP, Commands, add_command, parse_specs, seconds

if TYPE_CHECKING:
    from .. import xdeploy
    from .._xdeploy.kept import Kept

_USAGE = """\
execnet venv SPEC NAME [REQUIREMENT...] [-r FILE]... [--project DIR]
       execnet venv list SPEC
       execnet venv prune SPEC [NAME...]"""
_DESCRIPTION = f"""\
Make a virtual environment where SPEC leads, unless it exists, and print a spec for workers of its
interpreter. "list" prints what is kept there, "prune" removes what nobody uses.

{SPEC_HELP}
A REQUIREMENT is one that pip accepts, a requirements file, a pyproject.toml, a pylock.toml, a
uv.lock, a wheel, or the folder of a project that is pure Python.
"""
_EPILOG = """\
exit status:
  0    the environment exists; its spec was printed
  1    it could not be made, or the interpreter of SPEC could not be started
  2    the command line is wrong
  124  the time-out has passed
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)

examples:
  execnet venv ssh=host proj 'numpy>=2' requests
  pytest -d --tx $(execnet venv ssh=host proj -r requirements.txt --project .)
  execnet venv prune ssh=host --unused 7
"""
_FOR_PRUNE = "unused", "dry_run"
_FOR_MAKE = (
    "requirement", "project", "python", "fetch_python", "offline", "find_links", "index_url",
    "recreate", "refresh", "verbose",
)  # fmt: skip
_COLUMNS = "kind", "name", "python", "tool", "size", "last use", "state", "path"


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet venv``."""
    parser = add_command(
        subparsers,
        "venv",
        "make, list and prune environments on the far side",
        _DESCRIPTION,
        _EPILOG,
        usage=_USAGE,
    )
    parser.add_argument("words", nargs="+", metavar="WORD", help="as above")
    add = parser.add_argument
    add(
        "-r",
        "--requirement",
        action="append",
        default=[],
        metavar="FILE",
        help="a requirements file",
    )
    add("--project", metavar="DIR", help="also install this project, and copy its tree there")
    add("--python", metavar="VERSION", help='interpreter: "3.12", "auto", or a path there')
    add("--fetch-python", action="store_true", help="have uv there fetch it if there is none")
    add("--offline", action="store_true", help="send all packages from here")
    add(
        "--find-links", action="append", default=[], metavar="DIR", help="a folder with wheels here"
    )
    add("--index-url", metavar="URL", help="the index; a secret in its address stays here")
    add("--recreate", action="store_true", help="make it again, even if it exists")
    add("--refresh", action="store_true", help="the same, to get newer versions")
    add("--root", metavar="FOLDER", help="folder there for everything (~/.cache/execnet)")
    add("--timeout", type=seconds, metavar="SECONDS", help="end everything after that time")
    add("--verbose", "-v", action="store_true", help="print what installers print, to stderr")
    add("--unused", type=_days, metavar="DAYS", help="prune: after this long without use (30)")
    add("--dry-run", action="store_true", help="prune: only print what would be removed")
    add("--json", action="store_true", help="print each line as a JSON object")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.words[0] in _ACTIONS and len(args.words) > 1:
        action, (word, *rest) = _ACTIONS[args.words[0]], args.words[1:]
    elif len(args.words) > 1:
        action, (word, *rest) = _make, args.words
    else:
        raise CommandError("give SPEC and NAME, list SPEC, or prune SPEC")
    _check_options(args, action)
    specs = parse_specs([word])
    if len(specs) != 1:
        raise CommandError(f"{word!r} is more than one spec")

    def job(session: Session) -> int:
        [gateway] = session.group.start_all(specs)
        try:
            lines = action(args, rest, gateway, session)
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        except (ExecnetError, OSError, EOFError) as exc:
            raise CommandError(str(exc), STATUS_FAILED) from exc
        try:
            if lines:
                session.out.write("\n".join(lines))
        except OSError as exc:
            session.stdout_failed(exc)
        return 0

    return supervise("venv", job, args.timeout)


def _check_options(args: argparse.Namespace, action: Callable[..., object]) -> None:
    """Refuse what is for another action: whoever says ``--dry-run`` wants nothing to be made."""
    for name, value in vars(args).items():
        of = _prune if name in _FOR_PRUNE else _make if name in _FOR_MAKE else action
        is_given = value is not None and value is not False and value != []
        if is_given and of is not action:
            whose = '"prune"' if of is _prune else "making an environment"
            raise CommandError(f"--{name.replace('_', '-')} is for {whose}")


def _days(text: str) -> float:
    """Return a number of days, for argparse."""
    with suppress(ValueError):
        days = float(text)
        if days >= 0:
            return days
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")


# ---------------------------------------------------------------- making


def _make(
    args: argparse.Namespace, words: list[str], gateway: Gateway, session: Session
) -> list[str]:
    from .. import xdeploy

    def tell(line: str) -> None:
        session.err.write(line, "  ")

    name, *requirements = words
    options: dict[str, Any] = {
        "offline": args.offline or "auto",
        "find_links": args.find_links or None,
        "index_url": args.index_url,
        "root": args.root,
        "on_output": tell if args.verbose else None,
    }
    wanted: list[str | os.PathLike[str]] = [*requirements]
    for path in args.requirement:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no file {path!r}")
        wanted.append(os.path.join(os.path.curdir, path))
    setup = xdeploy.SetupFile(args.project) if args.project else None
    if setup is not None:  # before anything is done over there; what is built is found again
        setup.wheel(options["on_output"])
    worker = xdeploy.create_venv_gateway(
        gateway, name, wanted, python=args.python, fetch_python=args.fetch_python,
        recreate=args.recreate, refresh=args.refresh,
        **options,
    )  # fmt: skip
    venv: xdeploy.Venv = worker.venv  # type: ignore[attr-defined]
    python, chdir = venv.python, None
    if setup is not None:
        python, chdir = _bring(setup, worker, python, options)
    spec = spec_for(gateway.spec, python, chdir)
    return [json.dumps({"spec": spec}) if args.json else spec]


def _bring(
    setup: xdeploy.SetupFile, worker: Gateway, python: str, options: dict[str, Any]
) -> tuple[str, str]:
    """Bring a project there; return a command that starts ``python`` with it, and its tree."""
    if setup.wheel(options["on_output"]).name.endswith("-none-any.whl"):
        layer = setup.wheel_remote_install(worker, **options)
    else:
        layer = setup.sdist_remote_install(worker, **options)
    sync = setup.sync_remote(worker, root=options["root"])
    return sync.launcher(python, layer), sync.folder


def spec_for(spec: XSpec, python: str, chdir: str | None) -> str:
    """Return a spec for another interpreter at the same place; other keys are kept."""
    replaced = {"id", "python", *(["chdir"] if chdir else [])}
    parts = [part for part in str(spec).split("//") if part.partition("=")[0] not in replaced]
    parts.append(f"python={shlex.quote(python)}")
    return "//".join([*parts, f"chdir={chdir}"] if chdir else parts)


# ---------------------------------------------------------------- what is kept


def _list(
    args: argparse.Namespace, words: list[str], gateway: Gateway, session: Session
) -> list[str]:
    from .._xdeploy.kept import kept

    if words:
        raise CommandError(f"list takes one SPEC, and no {words[0]!r}")
    entries = kept(gateway, args.root)
    return [json.dumps(asdict(entry)) for entry in entries] if args.json else _table(entries)


def _prune(
    args: argparse.Namespace, words: list[str], gateway: Gateway, session: Session
) -> list[str]:
    from .._xdeploy.kept import prune

    unused_days = 30.0 if args.unused is None else args.unused
    entries = prune(gateway, unused_days, words, args.dry_run, args.root)
    if args.json:
        return [json.dumps({**asdict(entry), "removed": not args.dry_run}) for entry in entries]
    verb = "would remove" if args.dry_run else "removed"
    return [f"{verb} {entry.path}: {_size(entry.bytes)}, {entry.state}" for entry in entries]


_ACTIONS = {"list": _list, "prune": _prune}


def _table(entries: Sequence[Kept]) -> list[str]:
    rows = []
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        row = entry.kind, entry.name, entry.python, entry.tool, _size(entry.bytes), used
        rows.append((*row, entry.state, entry.path))
    return [format_table(rows, _COLUMNS)]


def _size(count: int) -> str:
    """Return a number of bytes in readable form."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
