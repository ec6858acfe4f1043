"""Coverage-guided fuzzing of what a peer can send, one subject at a time.

``items`` loads pickles, ``classic`` the classic format, ``frames`` cuts bytes into messages,
``hello`` is all that a coordinator reads of a worker, ``proof`` what both sides of a socket say
first.  Each is run by atheris, in an environment of its own, and keeps the inputs that led
somewhere new in a folder, with which the next run begins.  The exit status is 1 if an input broke
what a subject promises; it is in the folder, too, and is given again with ``--input``.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
INPUT_MAX = 4096  # bytes
LIMITS = "-timeout=10", "-rss_limit_mb=1024"  # of one input
# Words of what is refused with care, and only then.
CARE = "same hash", "nested too", "channels in", "a list of", "digits"


# ---------------------------------------------------------------- subjects


class Factory:
    """Makes channels for the items that name some."""

    def new(self, id: int) -> str:
        return f"channel {id}"


def items() -> tuple[Callable[[bytes], None], list[bytes]]:
    """A pickle that passes is a plain item, and the same one if it is loaded with care."""
    from execnet._ends import checked
    from execnet.gateway_base import DumpError, LoadError, dumps_fast, dumps_internal, load_item

    strconfig = True, False

    def try_one(data: bytes) -> None:
        data = b"\x80\x04" + data
        try:
            item = checked.load_checked(data, Factory(), strconfig)
        except LoadError:
            return
        for load in checked._Pickle(data).load, lambda: load_item(data, 0, strconfig):
            with suppress(LoadError):  # one of them minds what is left over
                assert shown(checked._carefully(load)) == shown(item)
        try:
            dumps_internal(item)
        except DumpError as exc:  # what may be loaded is nested more deeply than what is dumped
            if "nested too deeply" not in str(exc):
                raise

    return try_one, [
        dumps_fast(item)[2:] for item in examples() if type(item) in (list, dict, tuple)
    ]


def classic() -> tuple[Callable[[bytes], None], list[bytes]]:
    """The classic format is loaded to the same item, or refused, with care and without."""
    from execnet._ends import checked
    from execnet.gateway_base import (
        DataFormatError,
        LoadError,
        dumps,
        dumps_internal,
        load_item,
        loads,
    )

    strconfig = True, False

    def try_one(data: bytes) -> None:
        with suppress(DataFormatError, EOFError):
            loads(data)
        data = data[1:]
        if data[:1] == b"\x80":
            return
        try:
            item = load_item(data, Factory(), strconfig)
        except LoadError:
            item = LoadError
        try:
            careful = checked._carefully(checked._Classic(data, Factory(), strconfig).load)
        except LoadError as exc:
            if item is not LoadError and not any(word in str(exc) for word in CARE):
                raise AssertionError(f"refused with care only: {exc}") from exc
        else:
            assert shown(careful) == shown(item)

    return try_one, [dumps(item) for item in examples()] + [b"\2" + dumps_internal(1)]


def frames() -> tuple[Callable[[bytes], None], list[bytes]]:
    """However the bytes are cut, the same messages come, and then the same error."""
    from execnet.gateway_base import FrameDecoder, ProtocolError

    def messages(pieces: list[bytes], hands_on: bool) -> list[Any]:
        decoder, found = FrameDecoder(hands_on), []
        try:
            for piece in pieces:
                for message in decoder.feed(piece):
                    start = [message.msgcode, message.channelid]
                    if message.is_first is False:
                        found[-1] += bytes(message.data)
                    else:
                        found += [start, bytes(message.data)]
        except ProtocolError:
            found.append("error")
        return found

    def try_one(data: bytes) -> None:
        if not data:
            return
        size, data = data[0] + 1, data[1:]
        cut = [data[start : start + size] for start in range(0, len(data), size)]
        for hands_on in False, True:
            whole = messages([data], hands_on)
            assert messages(cut, hands_on) == whole

    return try_one, [b"\5" + b"".join(frame(4, 1, b"x" * size) for size in (0, 3, 900))]


def hello() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Whatever a worker says, its gateway ends with an error of ours, and so do its channels."""
    import threading

    import execnet
    from execnet._endpoint import Endpoint
    from execnet._ends.handshake import Handshake
    from execnet.gateway import Gateway
    from execnet.gateway_base import (
        Message,
        ProtocolError,
        StreamEnded,
        dumps_internal,
        get_execmodel,
    )

    model, spec = get_execmodel("thread"), execnet.XSpec("popen//python=x//max_item=100000//id=w")

    class Said(Endpoint):
        """A stream on which a worker has said certain bytes."""

        execmodel = model

        def __init__(self, data: bytes) -> None:
            self.data = data

        def read_some(self, limit: int) -> bytes:
            read, self.data = self.data[:limit], self.data[limit:]
            return read

        def write_some(self, data: Any) -> int:  # type: ignore[override]
            return len(data)

        def write(self, data: bytes) -> None: ...
        def wait_writable(self) -> None: ...
        def can_write_now(self) -> bool:
            return True

        def close_write(self) -> None: ...
        def close_read(self) -> None: ...
        def wait(self) -> int | None:
            return 0

        def poll_until(self, deadline: float) -> int | None:
            return 0

        def kill(self) -> None: ...

    class Quiet(Gateway):
        """A gateway that receives when it is told to."""

        def _initreceive(self) -> None: ...

    def try_one(data: bytes) -> None:
        before = threading.enumerate()
        gateway = Quiet(Said(data), spec, Handshake(model, b"m"))
        one, other = gateway.newchannel(), gateway.newchannel()
        heard: list[Any] = []
        other.setcallback(heard.append)
        gateway._run_receiver()
        assert isinstance(gateway._error, (EOFError, ProtocolError, StreamEnded)), gateway._error
        for _ in range(len(data)):
            try:
                one.receive(0)
            except execnet.TimeoutError:
                raise AssertionError("a channel of a gateway that ended is open") from None
            except (EOFError, OSError, execnet.ExecnetError):
                break
        try:
            other.waitclose(0)
        except execnet.TimeoutError:
            raise AssertionError("a channel of a gateway that ended is open") from None
        except (EOFError, OSError, execnet.ExecnetError):
            pass
        deadline = time.monotonic() + 5
        while more := set(threading.enumerate()) - set(before):  # one may be about to end
            assert time.monotonic() < deadline, more
            time.sleep(0.001)

    said = {"codecs": "fast", "features": "", "version_info": (3, 11, 4, "final", 0), "pid": 1}
    said |= {"implementation": "cpython", "executable": "x", "platform": "linux", "cwd": "/"}
    start = b"noise m" + frame(Message.HELLO, 0, dumps_internal(said))
    rest = [frame(4, id, dumps_internal(item)) for id in (1, 3) for item in examples()]
    part = frame(9, 1, struct.pack("!iB", 5, 1) + dumps_internal(b"x" * 99))
    ends = [frame(code, 1, dumps_internal("E")) for code in Message._types]
    return try_one, [start + b"".join(rest), start + part, *(start + end for end in ends)]


def proof() -> tuple[Callable[[bytes], None], list[bytes]]:
    """Nobody proves to have a key that he has not, and both sides end in bounded steps."""
    import warnings

    from execnet._errors import AuthenticationError
    from execnet._transports import keys
    from execnet._transports.proof import prove
    from execnet.script import socketserver
    from execnet.xspec import XSpec

    key, spec = b"\1" * 32, XSpec("socket=127.0.0.1:1")
    with_key, without = keys.Wish(spec, key), keys.Wish(spec, key)
    without.key, without.is_needed = None, False
    warnings.simplefilter("ignore")

    class Talk:
        def __init__(self, data: bytes) -> None:
            self.data, self.said = data, b""

        def read(self, timeout_s: float) -> bytes:
            read, self.data = self.data[:50], self.data[50:]
            return read

        def write(self, data: bytes) -> None:
            self.said += data

        def dialled(self, timeout_s: float) -> bytes:
            return b"127.0.0.1:1"

        def begin_tls(self, timeout_s: float) -> bytes:
            return b"0" * 64

    class Conn(Talk):
        def recv(self, size: int, flags: int = 0) -> bytes:
            read = self.data[:size]
            if not flags:
                self.data = self.data[size:]
            return read

        def send(self, data: bytes) -> int:
            self.said += data
            return len(data)

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", 1

        def shutdown(self, how: int) -> None: ...
        def close(self) -> None: ...

    class Server:
        certificate, greets = None, True

        def __init__(self) -> None:
            self.key, self.started = key, 0

        def start_process(self, visitor: Any, line: bytes, rest: bytes) -> None:
            self.started += 1

        def quit(self, conn: Any) -> None:
            self.started += 1

    def try_one(data: bytes) -> None:
        for wish in with_key, without:
            try:
                prove(Talk(data), wish, "server", None)
            except AuthenticationError:
                continue
            raise AssertionError("it was believed")
        server, conn = Server(), Conn(data)
        visitor = socketserver.Visitor(server, conn, "")  # type: ignore[arg-type]
        for _ in range(len(data) + 2):
            if not visitor.advance():
                break
        else:
            raise AssertionError("it goes on and on")
        assert (server.started, visitor.is_known) == (0, False)

    nonce = b"ab" * 32
    says = [
        b"plain " + nonce,
        b"tls -",
        b"ok " + nonce,
        b"error no",
        nonce + b" 127.0.0.1:1 " + nonce,
    ]
    return try_one, [b"execnet-auth-1 " + words + b"\n" for words in says] + [b"'x'\n", b"\0quit\n"]


SUBJECTS = {function.__name__: function for function in (items, classic, frames, hello, proof)}


def examples() -> list[Any]:
    """Return items of all kinds."""
    return [
        *(None, True, 0, -1, 1 << 40, -(1 << 70), 1.5, 2j, "ä", b"\0x", [], {}, (), set()),
        *([1, [2.5, None]], {"a": (1, b"x"), 2: {3}}, {(1, (2,)): frozenset([4])}, list(range(99))),
    ]


def shown(item: Any) -> list[str]:
    """Return what tells items apart: sets have no order, and NaN is not equal to itself."""
    return sorted(repr(item))


def frame(code: int, channel_id: int, data: bytes) -> bytes:
    """Return the bytes of a frame."""
    return struct.pack("!bii", code, channel_id, len(data)) + data


# ---------------------------------------------------------------- running them


def run_here(name: str, options: list[str]) -> None:
    """Run one subject in this process, which ends with it."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["execnet"]):
        try_one, _ = SUBJECTS[name]()
    atheris.Setup([sys.argv[0], *options], try_one)
    atheris.Fuzz()


def run(name: str, seconds: int, corpus: Path, python: Path) -> int:
    """Run one subject in a process of its own; return its exit status."""
    folder, found = corpus / name, corpus / f"{name}-found"
    for path in folder, found:
        path.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SUBJECTS[name]()[1]):
        (folder / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-max_len={INPUT_MAX}", *LIMITS]
    command = [python, __file__, "--here", name, f"-artifact_prefix={found}/", *limits, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = process.communicate()[0].decode(errors="replace")
    kept = len(list(folder.iterdir()))
    if process.returncode:
        print(f"{name}: broken; the input is in {found}\n{said[-4000:]}", flush=True)
    else:
        print(f"{name}: {seconds} s, {kept} inputs kept, nothing broken", flush=True)
    return process.returncode


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=int, default=3600, help="for each (3600)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".benchmarks", help="(.benchmarks)")
    parser.add_argument("--input", type=Path, help="try this one and nothing else, without atheris")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    names = options.names or list(SUBJECTS)
    if options.input:
        for name in names:
            SUBJECTS[name]()[0](options.input.read_bytes())
        return 0
    sys.path.insert(0, str(ROOT))
    from benchmarks._catalog import OURS, peers_named
    from benchmarks._environments import Environments

    cache = options.cache.absolute()
    (ours,) = [peer for peer in peers_named(None) if peer.name == OURS]
    python = Environments(cache, False).python_for(ours, ("atheris",))
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        runs = [
            executor.submit(run, name, options.seconds, cache / "corpus", python) for name in names
        ]
        return max(done.result() for done in runs)


if __name__ == "__main__":
    sys.exit(main())
