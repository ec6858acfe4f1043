"""A project of this machine: built once per content, and installed on the far side.

Start at ``SetupFile``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import _folders
from .._clock import monotonic
from .._rsync.far.changes import Stop, changes
from .._ship.parts import run
from ..gateway_base import RemoteError, TimeoutError, new_lock
from ..rsync import RSync
from .errors import DeployError, hidden
from .far.locks import Lock
from .making import DEFAULT_S, Making, Options, links_of
from .output import Output
from .requirements import Wanted, digest_of, load_toml, read, sent_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from .far.places import UseAnswer, UseRequest
    from .requirements import Requirements

LADDER = ["uv", "pip", "a pip that is sent", "unpack"]
TRIES = 3
ANSWER_S = 60.0
ANSWERED = {  # at least this, by the kind of the request
    "layer": {"found", "key", "facts", "interpreter", "leaves_out"},
    "tree": {"folder"}, "use": set(), "launcher": {"launcher"},
}  # fmt: skip
KEPT_BUILDS = 5  # of one project
# What in a tree is not source; a name with a "/" in front counts only at the top.
LEFT_OUT = [
    "__pycache__/", "*.pyc", ".git/", ".hg/", ".svn/", ".tox/", ".nox/", ".venv/", "*.egg-info/",
    ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/", "node_modules/",
    "/build/", "/dist/", "/venv/", "/env/",
]  # fmt: skip
_NAMES = {name.strip("/*") for name in LEFT_OUT}
_FILE = re.compile(r"([A-Za-z0-9_.]+)-[A-Za-z0-9_.!+]+(?:-[^/]+\.whl|\.tar\.gz)")
OnOutput = Callable[[str], object]
Links = str | os.PathLike[str] | list[str | os.PathLike[str]]


class SetupFile:
    """A project to install on the far side from this working copy.

    path: its ``setup.py`` or ``pyproject.toml``, or the folder that these are in.  isolated:
    whether to build it in an environment of its own, which needs the index; False uses what is
    installed here.  Raises FileNotFoundError if there is no project.
    """

    def __init__(self, path: str | os.PathLike[str], *, isolated: bool = True) -> None:
        path = Path(path).expanduser().absolute()
        self.folder = path if path.is_dir() else path.parent
        names = "pyproject.toml", "setup.py", "setup.cfg"
        if not path.exists() or not any((self.folder / name).is_file() for name in names):
            raise FileNotFoundError(f"no project at {str(path)!r}")
        self._isolated = isolated
        self.name = _name_of(self.folder)

    # building

    def wheel(self, on_output: OnOutput | None = None) -> Path:
        """Return a wheel of the project as it is now; it is built once per content.

        on_output: called with each line of the build.  Raises ``DeployError`` if it can't be built.
        """
        return self._built("wheel", on_output)

    def sdist(self, on_output: OnOutput | None = None) -> Path:
        """Return a source distribution; otherwise like ``wheel``."""
        return self._built("sdist", on_output)

    def _built(self, kind: str, on_output: OnOutput | None) -> Path:
        builds = Path(_folders.builds_folder(), hashlib.sha256(bytes(self.folder)).hexdigest()[:16])
        builds.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = builds / f"{kind}-{self._digest()}"

        def on_wait(who: str) -> None:
            logging.getLogger("execnet.xdeploy").info("waiting for %s, which builds it", who)

        lock = Lock(str(builds / "lock"), _now() + DEFAULT_S, on_wait, lambda: None)
        with lock, Output(on_output) as output:
            found = _only_file(place)
            if found is None:
                found = self._build(kind, place, output)
                _remove_old(builds, kind)
            os.utime(place)
            return found

    def _build(self, kind: str, place: Path, output: Output) -> Path:
        if find_spec("build") is None:
            text = "building a project needs the package build: pip install 'execnet[xdeploy]'"
            raise DeployError(text, "building")
        output.step(f"building {self.folder.name}")
        shutil.rmtree(place, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
            command = [sys.executable, "-m", "build", f"--{kind}", "--outdir", temporary]
            if not self._isolated:
                command += ["--no-isolation", "--skip-dependency-check"]
            _run([*command, str(self.folder)], output)
            found = _only_file(Path(temporary))
            if found is None:
                raise DeployError(f"no {kind} came of building {self.folder}", "building", command)
            os.rename(temporary, place)
            os.mkdir(temporary)  # the latter is removed now
        return place / found.name

    def _digest(self) -> str:
        """Return a digest of the content of the project."""
        seen = hashlib.sha256(f"{sys.version} {self._isolated}".encode())
        for name in sorted(self._files()):
            path = self.folder / name
            with suppress(OSError):  # it is gone by now
                content = os.readlink(path) if path.is_symlink() else digest_of(path)
                seen.update(f"{name}\0{path.lstat().st_mode:o}\0{content}\0".encode())
        return seen.hexdigest()[:32]

    def _files(self) -> Iterator[str]:
        """Yield the names of its files: those that git knows, or else all that may be sources."""
        command = ["git", "-C", str(self.folder), "ls-files", "-coz", "--exclude-standard"]
        with suppress(OSError):
            result = subprocess.run(command, capture_output=True)
            if result.returncode == 0 and result.stdout:
                yield from filter(None, os.fsdecode(result.stdout).split("\0"))
                return
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not _is_left_out(name)]
            for name in files:
                if not name.endswith(".pyc"):
                    yield os.path.relpath(os.path.join(folder, name), self.folder)

    # installing

    def wheel_remote_install(
        self,
        gateway: Gateway,
        *,
        offline: bool | str = "auto",
        find_links: Links | None = None,
        index_url: str | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        root: str | None = None,
    ) -> str:
        """Install a wheel of the project, with what it needs, for the worker of a gateway.

        It goes into a folder of its own, a layer, which is on the path of this worker only, and of
        the processes that it starts from now on.  A layer with the same content is found again.
        Arguments and errors: as for ``create_venv_gateway``.  Returns the folder there.
        """
        file = self.wheel(on_output)
        options = _options(offline, find_links, index_url, timeout, root)
        return _install(gateway, file, options, on_output)

    def sdist_remote_install(
        self,
        gateway: Gateway,
        *,
        offline: bool | str = "auto",
        find_links: Links | None = None,
        index_url: str | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
        root: str | None = None,
    ) -> str:
        """Install a source distribution, which is built there; otherwise like a wheel.

        Use it for projects that have to be compiled for the far side.
        """
        file = self.sdist(on_output)
        options = _options(offline, find_links, index_url, timeout, root)
        return _install(gateway, file, options, on_output)

    def sync_remote(
        self, gateway: Gateway, watch: bool = False, *, root: str | None = None
    ) -> Sync:
        """Copy the tree of the project to the far side and put it on the path of the worker.

        Use it while you edit and try: nothing is built or installed, and only changes are sent.
        Modules of the project that were imported before are imported again.

        watch: repeat this after each change, in a thread, until the returned object is closed.
        Raises ``RSyncError`` if the tree can't be copied, ``DeployError`` if the worker can't use
        it.
        """
        sync = Sync(self.folder, self.name, gateway, root or "")
        sync.once()
        if watch:
            sync.start()
        return sync


def normalized(name: str) -> str:
    """Return the normalized name of a project, the same for all its spellings."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64] or "project"


def _name_of(folder: Path) -> str:
    """Return the name of a project, or that of its folder if it has none."""
    path = folder / "pyproject.toml"
    name = load_toml(path).get("project", {}).get("name") if path.is_file() else None
    return normalized(name if isinstance(name, str) else folder.name)


def _now() -> float:
    import time

    return time.time()


def _is_left_out(name: str) -> bool:
    return name in _NAMES or name.endswith(".egg-info")


def _only_file(folder: Path) -> Path | None:
    with suppress(OSError):
        files = [path for path in folder.iterdir() if _FILE.fullmatch(path.name)]
        if len(files) == 1:
            return files[0]
    return None


def _remove_old(builds: Path, kind: str) -> None:
    """Keep only the last builds of a project."""
    found = sorted(builds.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[KEPT_BUILDS:]:
        shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str], output: Output) -> None:
    """Run a command of this machine; ``DeployError`` if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for data in process.stdout:
            lines.append(data.decode("utf-8", "replace").rstrip())
            output.line(hidden(lines[-1]))
    if process.returncode:
        text = f"building: exit status {process.returncode}"
        raise DeployError(text, "building", command, process.returncode, lines[-100:])


def _options(
    offline: bool | str,
    find_links: Links | None,
    index_url: str | None,
    timeout: float | None,
    root: str | None,
) -> Options:
    if offline not in (True, False, "auto"):
        raise ValueError(f"offline must be True, False or 'auto', and is {offline!r}")
    return Options(
        offline=offline, find_links=links_of(find_links), index_url=index_url or "",
        timeout_s=timeout or DEFAULT_S, root=root or "",
    )  # fmt: skip


# ---------------------------------------------------------------- layers


def _install(gateway: Gateway, file: Path, options: Options, on_output: OnOutput | None) -> str:
    """Have a wheel or a source distribution installed in a layer; return its folder there."""
    match = _FILE.fullmatch(file.name)
    assert match is not None
    name = normalized(match[1])
    wanted = Wanted(files=[file], lines=[sent_file(match[1], 0, file)])
    request: UseRequest = {
        "kind": "layer", "name": name, "root": options.root,
        "digest": wanted.digest(options.index_url and hidden(options.index_url)),
    }  # fmt: skip
    deadline = monotonic() + options.timeout_s
    with Output(on_output) as output:
        for _ in range(TRIES):
            answer = _asked(gateway, request, deadline - monotonic())
            if answer["found"]:
                return str(answer.get("folder"))
            more = {
                "name": name, "newer_than": 0, "key": answer["key"], "facts": answer["facts"],
                "interpreter": answer["interpreter"], "leaves_out": answer["leaves_out"] is True,
            }  # fmt: skip
            making = Making(gateway, f"{name} on {gateway.id}", wanted, options, output)
            making.run("_xdeploy.far.layers", more, LADDER, deadline - monotonic())
    raise DeployError(f"the layer of {name} is removed as soon as it is made", "installing")


def _asked(gateway: Gateway, request: UseRequest, timeout_s: float) -> UseAnswer:
    """Return what the worker answers to a request to ``far.use``."""
    try:
        channel = run(gateway, "_xdeploy.far.use")
        channel.send(request)
        answer: UseAnswer = channel.receive(max(0.0, timeout_s))
        channel.waitclose(ANSWER_S)
    except (RemoteError, TimeoutError, EOFError) as exc:
        raise DeployError(f"{gateway.id} can't use it: {exc}", "using it") from exc
    if type(answer) is not dict or not answer.keys() >= ANSWERED[request["kind"]]:
        raise DeployError(f"{gateway.id} broke the protocol", "using it")
    return answer


# ---------------------------------------------------------------- trees


class _Noting(RSync):
    """Notes which sources of Python are sent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sources: list[str] = []

    def _report_send_file(self, gateway: object, modified_rel_path: str) -> None:
        if modified_rel_path.endswith(".py"):
            self.sources.append(modified_rel_path)


class Sync:
    """A tree that is copied to the far side, once or after each change.

    As a context manager it stops watching at the end.  ``error`` is what went wrong the last
    time, None if nothing did.  A thread of its own watches; any thread may call.
    """

    def __init__(self, folder: Path, name: str, gateway: Gateway, root: str) -> None:
        self.error: Exception | None = None
        self._source = folder
        self._gateway = gateway
        self._root = root
        self._name = name
        self._lock = new_lock()
        self._folder: str | None = None
        self._thread: threading.Thread | None = None
        self._stop: Stop | None = None
        self.count = 0  # how often something was sent

    def __enter__(self) -> Sync:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def folder(self) -> str:
        """The folder of the tree there, "" before the first copy."""
        return self._folder or ""

    def once(self) -> int:
        """Copy it as it is now; return how many files were sent or removed."""
        with self._lock:
            is_first = self._folder is None
            if self._folder is None:
                self._folder = str(self._ask({"kind": "tree", "key": self._key()})["folder"])
            rsync = _Noting(self._source, verbose=False, rules=[f"- {name}" for name in LEFT_OUT])
            rsync.add_target(self._gateway, self._folder, delete=True, links="inside")
            result = rsync.send()
            assert result is not None
            target = result.targets[0]
            changed = target.files_sent + target.deleted
            if changed or is_first:
                self._ask({
                    "kind": "use", "folder": self._path(self._folder), "changed": bool(changed),
                    "tree": self._folder, "sent": rsync.sources,
                })  # fmt: skip
                self.count += 1
            return changed

    def launcher(self, python: str, layer: str) -> str:
        """Return the path of a command there that starts an interpreter with a layer."""
        request: UseRequest = {"kind": "launcher", "key": self._key()}
        request["python"], request["layer"] = python, layer
        return str(self._ask(request)["launcher"])

    def _key(self) -> str:
        import socket

        source = f"{socket.gethostname()}\0{self._source}"
        return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def _path(self, folder: str) -> str:
        """Return the folder that modules are imported from: ``src``, if the project has one."""
        return f"{folder}/src" if (self._source / "src").is_dir() else folder

    def _ask(self, request: UseRequest) -> UseAnswer:
        request["name"], request["root"] = self._name, self._root
        return _asked(self._gateway, request, ANSWER_S)

    def start(self) -> None:
        """Start watching."""
        self._stop = Stop()
        self._thread = threading.Thread(target=self._watch, name="execnet-sync", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        assert self._stop is not None
        try:
            for _ in changes(str(self._source), self._stop):
                if self._stop.is_set():
                    return
                self._try()
        except Exception as exc:  # it can't be watched any more
            self._failed(exc)

    def _try(self) -> None:
        try:
            self.once()
            self.error = None
        except (OSError, EOFError, RemoteError) as exc:
            self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        self.error = exc
        logging.getLogger("execnet.xdeploy").warning("can't copy %s: %s", self._source, exc)

    def close(self) -> None:
        """Stop watching; the copy stays."""
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join()
            self._stop.close()
            self._thread = None


def wanted_of(requirements: Requirements) -> Wanted:
    """Return what is wanted; projects that are named become wheels."""
    return read(requirements, lambda path: _pure(SetupFile(path).wheel()))


def _pure(wheel: Path) -> Path:
    if not wheel.name.endswith("-none-any.whl"):
        text = f"{wheel.name} is for this platform: use sdist_remote_install for such a project"
        raise DeployError(text, "building")
    return wheel
