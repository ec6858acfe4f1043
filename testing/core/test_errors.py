"""The error classes: their names, what they inherit, what they tell and that they can travel."""

from __future__ import annotations

import builtins
import copy
import os
import pickle
import signal
import subprocess
import sys

import pytest
from interpreters import Interpreter, chosen
from tools import BOUND_S, LonelyGateway, MakeGateway, clean_environment

import execnet
from execnet import RemoteError, WorkerDied, WorkerGone
from execnet.gateway_base import Message, dumps_internal, loads_internal

ERRORS = {
    name: kind
    for name in execnet.__all__
    if isinstance(kind := getattr(execnet, name), type) and issubclass(kind, Exception)
}
OWN = "class Own(BaseException):\n    def __str__(self): return 'of its own'\nraise Own()"
UNPRINTABLE = "class Own(Exception):\n    def __str__(self): raise KeyError(1)\nraise Own()"


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_shows_by_the_name_that_users_know(name: str) -> None:
    assert ERRORS[name].__module__ == "execnet"
    assert f"{ERRORS[name].__module__}.{ERRORS[name].__qualname__}" == f"execnet.{name}"


def test_a_traceback_begins_with_that_name() -> None:
    code = "import execnet; execnet.makegateway().remote_exec('1/0').waitclose()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True
    )
    assert "\nexecnet.RemoteError: Traceback" in done.stderr


def test_in_a_worker_that_was_sent_all_they_have_the_name_of_what_was_sent(
    makegateway: MakeGateway,
) -> None:
    code = "channel.send(channel.TimeoutError.__module__)"
    gateway = makegateway(f"popen//python={sys.executable}")
    assert gateway.remote_exec(code).receive(BOUND_S) == "_execnet.gateway_base"
    assert makegateway().remote_exec(code).receive(BOUND_S) == "execnet"


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize(
    "travel", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_an_error_can_be_copied_and_pickled(name: str, travel: object) -> None:
    error = ERRORS[name]("text")
    error.stderr, error.exitcode = "last words", 3  # type: ignore[attr-defined]
    again = travel(error)  # type: ignore[operator]
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_what_a_remote_error_and_a_death_tell_travels_with_them(makegateway: MakeGateway) -> None:
    gateway = makegateway()
    with pytest.raises(RemoteError) as failed:
        gateway.remote_exec("1/0").waitclose(BOUND_S)
    with pytest.raises(WorkerDied) as died:
        gateway.remote_exec("import os; os._exit(3)").waitclose(BOUND_S)
    error, death = pickle.loads(pickle.dumps((failed.value, died.value)))
    assert (error.type_name, error.message) == ("ZeroDivisionError", "division by zero")
    assert error.formatted == failed.value.formatted
    assert (death.exitcode, death.id, death.spec) == (3, gateway.id, "popen")


def test_a_time_out_is_pythons_own_too(makegateway: MakeGateway) -> None:
    with pytest.raises(builtins.TimeoutError) as caught:
        makegateway().newchannel().receive(timeout=0)
    assert isinstance(caught.value, execnet.TimeoutError)
    assert isinstance(caught.value, OSError)


class TestRemoteError:
    @pytest.mark.parametrize("python", chosen(), ids=str)
    @pytest.mark.parametrize(
        ("code", "type_name", "message"),
        [
            ("raise ValueError('wrong')", "ValueError", "wrong"),
            ("raise ValueError()", "ValueError", ""),
            ("raise ValueError(u'\u20ac\\nuro')", "ValueError", "\u20ac\nuro"),
            ("raise SystemExit(3)", "SystemExit", "3"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
            (OWN, "Own", "of its own"),
            (UNPRINTABLE, "Own", "its text can't be read"),
        ],
    )
    def test_it_tells_type_and_message(
        self,
        makegateway: MakeGateway,
        python: Interpreter,
        code: str,
        type_name: str,
        message: str,
    ) -> None:
        with pytest.raises(RemoteError) as caught:
            makegateway(python.spec).remote_exec(code).waitclose(BOUND_S)
        assert (caught.value.type_name, caught.value.message) == (type_name, message)
        assert type(caught.value.formatted) is str
        assert str(caught.value) == caught.value.formatted

    def test_code_that_does_not_compile_has_its_type_too(self, makegateway: MakeGateway) -> None:
        with pytest.raises(RemoteError) as caught:
            makegateway().remote_exec("def").waitclose(BOUND_S)
        assert caught.value.type_name == "SyntaxError"

    def test_a_callback_that_raises_tells_both_sides(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(
            "error = None\n"
            "channel.send(1)\n"
            "try: channel.receive()\n"
            "except channel.RemoteError as exc: error = exc\n"
            "import sys; sys.told = error.type_name, error.message"
        )

        def callback(item: object) -> None:
            raise LookupError("here")

        channel.setcallback(callback)
        with pytest.raises(RemoteError) as caught:
            channel.waitclose(BOUND_S)
        assert (caught.value.type_name, caught.value.message) == ("LookupError", "here")
        told = channel.gateway.remote_exec(
            "import sys, time\n"
            "while not hasattr(sys, 'told'): time.sleep(0.01)\n"
            "channel.send(sys.told)"
        )
        assert told.receive(BOUND_S) == ("LookupError", "here")

    def test_a_text_alone_tells_neither(self, makegateway: MakeGateway) -> None:
        channel = makegateway().remote_exec(
            "made = channel.gateway.newchannel(); channel.send(made); made.close('a text')"
        )
        with pytest.raises(RemoteError) as caught:
            channel.receive(BOUND_S).waitclose(BOUND_S)
        error = caught.value
        assert (error.formatted, error.type_name, error.message) == ("a text", None, None)

    def test_what_is_sent_begins_with_the_text_that_older_ends_take(self) -> None:
        gateway = LonelyGateway()
        channel = gateway._channelfactory.new()
        channel.setcallback(lambda item: item / 0)
        gateway._channelfactory._local_receive(channel.id, dumps_internal(1))
        code, id, data = gateway.sent[-1]
        assert (code, id) == (Message.CHANNEL_CLOSE_ERROR, channel.id)
        text = loads_internal(data)
        assert "ZeroDivisionError" in text
        assert data.startswith(dumps_internal(text))

    def test_what_older_ends_send_is_taken(self) -> None:
        gateway = LonelyGateway()
        channel = gateway._channelfactory.new()
        Message(Message.CHANNEL_CLOSE_ERROR, channel.id, dumps_internal("old")).received(gateway)
        with pytest.raises(RemoteError) as caught:
            channel.waitclose(BOUND_S)
        error = caught.value
        assert (error.formatted, error.type_name, error.message) == ("old", None, None)


class TestSendingToADeadWorker:
    def test_it_says_what_the_death_says(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("import os; channel.receive(); os._exit(3)")
        channel.send(1)
        with pytest.raises(WorkerDied) as died:
            channel.waitclose(BOUND_S)
        for send in (
            lambda: channel.send(1),
            lambda: gateway.remote_exec("1"),
            gateway.newchannel,
            gateway.remote_status,
            gateway.reconfigure,
        ):
            with pytest.raises(WorkerGone) as caught:
                send()
            assert isinstance(caught.value, WorkerDied)
            assert isinstance(caught.value, OSError)
            assert str(caught.value) == str(died.value)
            assert vars(caught.value) == vars(died.value)
            assert caught.value.exitcode == 3

    def test_also_when_the_stream_tells_of_it_before_the_process_does(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("channel.receive()")
        os.kill(gateway._rinfo().pid, signal.SIGKILL)
        sends = (channel.send(b"x" * 100_000) for _ in range(1000))  # until the pipe breaks
        with pytest.raises(WorkerGone, match="killed by SIGKILL"):
            list(sends)

    def test_a_gateway_that_was_ended_is_not_dead(self, makegateway: MakeGateway) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        gateway.exit()
        gateway.join(BOUND_S)
        for send in (lambda: channel.send(1), gateway.newchannel):
            with pytest.raises(OSError, match="was ended") as caught:
                send()
            assert not isinstance(caught.value, WorkerDied)
