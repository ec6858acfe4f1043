"""Interrupts on the coordinator's request: KeyboardInterrupt in code that runs here.

A late one must not hit anything else.  In the main thread it is a signal, whose handler checks
whether its target is still running.  Elsewhere it is set for a thread, which withdraws it at the
end of a call.  ``running`` does either.  Start at ``on_interrupt``.
"""

from __future__ import annotations

from ..gateway_base import PY2, _import, get_ident, load_part, loads_internal

FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 30.0  # each is twice as long as the one before

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway_base import ExecModel, Message, Reply, WorkerGateway, WorkerPool

    Asked = Callable[[], bool]


def on_interrupt(message: Message, gateway: WorkerGateway) -> None:
    """Act on an INTERRUPT; runs in the receiver thread."""
    if not gateway.execmodel.has_main_thread:
        return
    if message.data:
        if gateway.calls is not None:
            gateway.calls.interrupt(message.channelid, loads_internal(message.data))
        return
    pool = gateway._execpool
    for reply in list(pool._running):
        task = reply.task[1][:1]
        if task and type(task[0]) is tuple and task[0][0].id == message.channelid:
            _interrupt_reply(gateway, pool, reply)


def _interrupt_reply(gateway: WorkerGateway, pool: WorkerPool, reply: Reply) -> None:
    if reply.ident == gateway.process.main_ident:
        interrupt_main(gateway, lambda: pool._primary_owner is reply)
    elif reply.ident:
        running = load_part("_features.running")
        running.let_import({reply.ident})
        with pool._lock:  # so that the thread can't end meanwhile, and another get its number
            if reply in pool._running:
                running.interrupt_others({reply.ident}, 0)


def interrupt_main(gateway: WorkerGateway, is_meant: Asked) -> None:
    """Interrupt the main thread, if by then it is still running the target."""
    process = gateway.process
    seen: list[None] = []

    def is_meant_once() -> bool:
        if seen:
            return False
        seen.append(None)
        process.is_meant = is_meant_once  # a following signal belongs to the same interrupt
        return bool(is_meant())

    process.is_meant = is_meant_once
    process.interrupt_main()

    def again() -> None:
        process.is_meant = is_meant_once
        process.interrupt_main()

    def settle() -> None:
        if process.is_meant is is_meant_once:
            process.is_meant = None

    insist(gateway.execmodel, lambda: not seen and is_meant(), again, settle)


def insist(
    execmodel: ExecModel,
    is_wanted: Asked,
    interrupt: Callable[[], object],
    settle: Callable[[], object] = int,
) -> None:
    """Repeat the interrupt until it is seen; then call ``settle``.

    Python does not notice a signal that arrives just before it begins to wait.
    """

    def run() -> None:
        pause_s = FIRST_PAUSE_S
        while pause_s < LAST_PAUSE_S:
            execmodel.sleep(pause_s)
            if not is_wanted():
                break
            interrupt()
            pause_s *= 2
        settle()

    try:
        execmodel.start(run, (), "execnet-interrupt")
    except RuntimeError:  # no more threads can be started: once has to do
        pass


def take_back() -> None:
    """Withdraw an interrupt that was set for this thread and was not raised yet."""
    try:
        ctypes = _import("ctypes")
    except Exception:  # then none was set either
        return
    raise_in = getattr(getattr(ctypes, "pythonapi", None), "PyThreadState_SetAsyncExc", None)
    if raise_in is not None:
        raise_in((ctypes.c_long if PY2 else ctypes.c_ulong)(get_ident()), None)
