"""How an interpreter becomes a worker: from its first line, over the hello, to serving.

In an interpreter that is sent its source, this is executed in its first line among the names of
``gateway_base``, whose first part has all that it needs until then.  It keeps to what Python 2.7
and today's Python both accept.  Start at ``start_worker``.
"""

from __future__ import annotations

import os
import sys

from ..gateway_base import (
    Message,
    Popen2IO,
    Process,
    _decoded,
    _frame_of,
    _handle_interrupts,
    _hello,
    _import,
    _keep_spare_fd,
    _serve,
    _signal_module,
    _thread,
    get_execmodel,
    geterrortext,
    init_popen_io,
    load_part,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType
    from typing import Any

    Find = Callable[[str, list[str]], ModuleSpec | None]


def start_worker(
    id: str,
    marker: bytes,
    execmodel: str,
    codecs: Sequence[str],
    chdir: str | bytes | None = None,
    nice: int = 0,
    env: Mapping[str | bytes, str | bytes] | None = None,
    grace: float | None = None,
    kill: str | None = None,
    stdout: int | None = None,
    rest: bool = False,
    watcher: str = "",
    faults: bool = False,
    terminal: str = "",
    limits: Mapping[str, Any] | None = None,
) -> None:
    """Become a worker on stdin and stdout, as the coordinator's first line asks for.

    ``marker`` tells the coordinator where noise ends and frames begin; with ``rest`` a part
    of ``gateway_base`` is still to come.  ``terminal``, ``watcher`` and the "part" of ``limits``
    are parts of ``_ends``: they leave a terminal, tell of the worker's end, and limit it.
    ``faults`` has traces of fatal signals sent.  What goes wrong in the preparation is reported in
    place of a hello.
    """
    _find_standard_library()
    if terminal:
        _part(terminal, "_ends.far_terminal")["leave_terminal"]()
    # So that none ends it before it knows what to interrupt.  Not SIG_IGN, which processes
    # that code starts would inherit.
    _handle_interrupts(lambda signum, frame: None)
    signal = _signal_module()
    if hasattr(signal, "pthread_sigmask"):  # a coordinator that blocks it, blocks it for all
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    is_watched = watcher and _part(watcher, "_ends.far_watcher")["fork_watcher"](_frame_of, marker)
    try:
        _fill_stdio()
        change_surroundings(env, chdir)
        if nice:
            os.nice(nice)
        if limits:
            _part(limits["part"], "_ends.far_limits")["set_limits"](limits, _import)
        before_exit = _lead_a_group() if kill == "group" else int
        io = _open_stream(execmodel, stdout)
    except Exception as exc:
        io = init_popen_io(get_execmodel("thread"))
        io.write(marker + _frame_of({"error": _decoded(geterrortext(exc))}))
        return
    io.write(marker + _hello())
    if rest:
        try:
            _read_rest(io)
        except EOFError:
            return  # the coordinator has gone
    Process.before_exit = staticmethod(before_exit)
    _keep_spare_fd()
    if (3,) < sys.version_info < (3, 9):  # whose threads, when they end, have glibc load a library
        _thread.start_new_thread(int, ())
    leave_stream = int
    if faults:
        trace_of = load_part("_features.running").FaultTrace
        leave_stream = trace_of(io.outfile.fileno()).leave_stream
    _serve(io, id, codecs, grace, farewell=marker, is_watched=is_watched, leave_stream=leave_stream)


def _fill_stdio() -> None:
    """Open null devices for closed standard descriptors, so that ours don't get their numbers."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


def _read_rest(io: Popen2IO) -> None:
    """Execute the rest of ``gateway_base``, which the coordinator sends when it has the hello.

    Only workers that were sent their source call this: it runs among the names of that module.
    """
    source = Message.from_io(io).data
    if source[:1] == b"\x78":  # deflated; source as text begins with an empty line
        import zlib

        source = zlib.decompress(source)
    if source[:1] == b"m":
        code = __import__("marshal").loads(source[1:])
    else:
        code = compile(source, __file__, "exec")  # as this part: Python 2 imports absolutely
    exec(code, globals())


def _lead_a_group() -> Callable[[], object]:
    """Arrange that all processes that this one starts are killed with it; return what does that."""
    import atexit
    import signal

    if os.getpgrp() != os.getpid():  # not as the leader of a session, whose group is its own
        os.setpgid(0, 0)
    return atexit.register(lambda: os.killpg(0, signal.SIGKILL))  # the first one is called last


def change_surroundings(
    env: Mapping[str | bytes, str | bytes] | None, chdir: str | bytes | None
) -> None:
    """Set variables of the environment, and change to a folder that may have to be made."""
    decode = getattr(os, "fsdecode", str)
    for name, value in (env or {}).items():
        os.environ[decode(name)] = decode(value)
    if chdir is not None:
        chdir = decode(chdir)
        missing, folder = [], chdir
        while folder and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder.rstrip(os.sep))
        for folder in reversed(missing):
            try:
                os.mkdir(folder, 0o755)  # as the umask says, and never for others to write to
            except EnvironmentError:
                if not os.path.isdir(folder):  # else another worker has made it just now
                    raise
        os.chdir(chdir)


def _part(source: str | bool, name: str) -> dict[str, Any]:
    """Return what a part of the first line defines; True: it can be imported."""
    if source is True:
        name = "%s.%s" % (str(__package__).rpartition(".")[0], name)
        __import__(name)
        return vars(sys.modules[name])
    namespace: dict[str, Any] = {"__name__": "_execnet" + name.replace(".", "_")}
    exec(compile(source, name, "exec", 0, True), namespace)  # type: ignore[arg-type]
    return namespace


class _StandardLibrary(object):
    """Finds the imports of our own code in the standard library, and nowhere else.

    A module of the working folder may have such a name, and is for the user's code.
    """

    def __init__(self) -> None:
        self._library = os.path.dirname(os.__file__)
        self._ours = os.path.dirname(_hello.__code__.co_filename) + os.sep
        self.places = [self._library]
        self.places += [p for p in sys.path if os.path.basename(p) in ("lib-dynload", "DLLs")]
        self.find: Find = sys.modules["_frozen_importlib_external"].PathFinder.find_spec

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Return where a module is, if our code or a module that it needs imports it."""
        frame: FrameType | None = sys._getframe(1) if path is None else None
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self._ours):
                found = self.find(name, self.places)
                if found is None and name not in sys.builtin_module_names:
                    try:
                        elsewhere = load_part("_features.elsewhere")
                    except (NameError, ImportError, AttributeError):  # the rest has yet to come
                        return None
                    return elsewhere.find_spec(self, name)  # type: ignore[no-any-return]
                return found
            frame = frame.f_back if self.has(file) or "frozen importlib" in file else None
        return None

    def has(self, file: str) -> bool:
        """Whether a file is one of the library's."""
        return file.startswith(self._library) and "-packages" not in file


def _find_standard_library() -> None:
    """Let our code import from there; not possible in Python 2 and in frozen programs."""
    try:
        sys.meta_path.insert(0, _StandardLibrary())
    except (KeyError, AttributeError, NameError):
        pass


def _open_stream(execmodel: str, stdout: int | None) -> Popen2IO:
    """Return the stream on stdin and stdout; stdout: a descriptor for what code prints."""
    if stdout is not None:
        os.fstat(stdout)  # fails if a program in between has closed it
    model = get_execmodel(execmodel)
    if not model.has_main_thread:  # if it is not installed, say so now
        for name in model._modules:
            model._module(name)
    io = init_popen_io(model)
    if stdout is not None:
        os.dup2(stdout, 1)
        os.close(stdout)
    return io
