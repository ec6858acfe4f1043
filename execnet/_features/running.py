"""Code that runs in this process: where it stands, how it is interrupted, how its crash is told.

A worker loads this when it begins to serve, since later it may not be able to: it has to end
whatever its code has made of the process.  Start at ``interrupt_all``; ``interrupts`` has those
that a coordinator asks for.
"""

from __future__ import annotations

import os
import sys

from ..gateway_base import (
    _FRAME_LINE,
    PY2,
    _import,
    _signal_module,
    _thread_names,
    _threading,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from ..gateway_base import WorkerGateway, WorkerPool

    Places = dict[int, tuple[int, int]]


# ---------------------------------------------------------------- stacks


def format_stacks() -> str:
    """Return the stacks of all threads of this process."""
    names = dict(_thread_names)
    format_stack: Callable[[FrameType], list[str]] = plain_stack
    try:
        names.update((thread.ident, thread.name) for thread in _threading().enumerate())
        format_stack = _import("traceback").format_stack
    except Exception:  # they can't be imported any more
        pass
    names.update(_thread_names)
    parts = ["process %d\n" % os.getpid()]
    for ident, frame in sys._current_frames().items():
        parts.append("\nthread %s:\n" % names.get(ident, ident))
        parts += format_stack(frame)
    return "".join(parts)


def plain_stack(frame: FrameType | None) -> list[str]:
    """Return the lines of a stack as far as they need no imports and no files."""
    lines: list[str] = []
    while frame is not None:
        code = frame.f_code
        lines.insert(0, _FRAME_LINE % (code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return lines


def _places(idents: set[int]) -> Places:
    """Return where threads are in their code."""
    frames = sys._current_frames()
    found = [(ident, frames[ident]) for ident in idents if ident in frames]
    return {ident: (id(frame), frame.f_lasti) for ident, frame in found}


# ---------------------------------------------------------------- interrupts


def interrupt_all(
    gateway: WorkerGateway, close: Callable[[], object] | None, wait_s: float
) -> bool:
    """Interrupt what a worker runs, and wait; return whether it will not end by itself.

    close: called after the interrupts; None: an orderly end, in which all may still send.
    """
    pool, process = gateway._execpool, gateway.process
    places, main_places = {}, {}
    if pool.active_count() and gateway.execmodel.has_main_thread:
        main_places = _places({process.main_ident})
        process.interrupt_main()
        places = interrupt_pool(pool, process.main_ident)
    if close is not None:
        close()
    if pool.waitall(wait_s):
        return False
    if main_places and _places({process.main_ident}) == main_places:
        process.interrupt_main()  # the first came just before it began to wait
    # A thread that waits in C meets its interrupt only after that, perhaps never.
    return close is not None and bool(places) and _places(pool.idents()) == places


def let_import(idents: set[int]) -> None:
    """Wait a moment until none of the threads is just now within the import system.

    An interrupt there may leave its lock taken, and the next import would wait for ever.
    """
    for _ in range(100):
        frames = sys._current_frames()
        files = [frames[ident].f_code.co_filename for ident in idents if ident in frames]
        if "<frozen importlib._bootstrap>" not in files:
            return
        __import__("time").sleep(0.001)


def interrupt_pool(pool: WorkerPool, main_ident: int) -> Places:
    """Interrupt all that a pool runs but in the main thread; return where the threads were."""
    let_import(pool.idents())
    with pool._lock:  # so that no thread can end meanwhile, and another get its number
        return interrupt_others(pool.idents(), main_ident)


def interrupt_others(idents: set[int], main_ident: int) -> Places:
    """Raise KeyboardInterrupt in threads that are not the main one; return where they were."""
    idents.discard(main_ident)
    places = _places(idents)
    if idents:
        try:
            ctypes = _import("ctypes")
        except Exception:  # an interpreter without it, or one that can import no more
            return {}
        raise_in = getattr(getattr(ctypes, "pythonapi", None), "PyThreadState_SetAsyncExc", None)
        if raise_in is None:  # PyPy
            return {}
        let_import(idents)
        for ident in idents:
            number = ctypes.c_long(ident) if PY2 else ctypes.c_ulong(ident)
            raise_in(number, ctypes.py_object(KeyboardInterrupt))
    return places


def interrupt_main_thread(ident: int) -> None:
    """Raise KeyboardInterrupt in the main thread, also where it sleeps."""
    let_import({ident})
    signal = _signal_module()
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(ident, signal.SIGINT)
    elif sys.platform != "win32":  # Python 2: the kernel prefers the main thread
        os.kill(os.getpid(), signal.SIGINT)
    else:
        __import__("thread" if PY2 else "_thread").interrupt_main()


# ---------------------------------------------------------------- crashes


class FaultTrace(object):
    """Sends the trace of a fatal signal to the worker's stream instead of to stderr.

    It is the last that the stream gets.  The coordinator, which reads it in ``_ends.last_words``,
    shows it on its own stderr, and keeps it for ``WorkerDied``.
    """

    def __init__(self, stream_fd: int) -> None:
        self._stream_fd = stream_fd
        self._stderr = _file_of(2)
        self._is_ours = False  # otherwise the code wants it elsewhere
        self._module: Any = None
        try:
            self._module = __import__("faulthandler")
        except ImportError:  # Python 2
            pass
        # A forked process must not write into its parent's stream.
        if self._module is not None and hasattr(os, "register_at_fork"):
            self._is_ours = True
            self._enable = self._module.enable
            os.register_at_fork(after_in_child=self.leave_stream)
            self._module.enable = self.enable
            self._enable(stream_fd)

    def enable(self, file: object = None, *args: object, **kwargs: object) -> None:
        """Stand in for ``faulthandler.enable``: what would go to stderr goes to the stream."""
        file = sys.stderr if file is None else file
        found = _file_of(file)
        self._is_ours = found is not None and found == self._stderr
        self._enable(self._stream_fd if self._is_ours else file, *args, **kwargs)

    def leave_stream(self) -> None:
        """Let traces go to stderr: the stream ends, or it belongs to the parent process."""
        if self._module is not None and self._module.enable == self.enable:
            self._module.enable = self._enable
        if self._is_ours and self._module.is_enabled():
            self._enable(2)
        self._is_ours = False


def _file_of(file: Any) -> tuple[int, int] | None:
    try:
        status = os.fstat(file if isinstance(file, int) else file.fileno())
    except Exception:  # it is closed, or not a file
        return None
    return status.st_dev, status.st_ino
