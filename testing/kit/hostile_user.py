"""Hostile peers: another user of this machine, as a process with its own uid.

It connects to sockets that are not its own, reads keys, and takes paths before they are used.
Only root can be two users; start at ``Neighbour``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import execnet

NOBODY = 65534
WAIT_S = 30.0
CAN_BE_TWO = hasattr(os, "geteuid") and os.geteuid() == 0 and sys.platform == "linux"
PROGRAM = f"""
import json, os, socket, sys, threading
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.umask(0)
heard = []

def serve(listener, greeting):
    while True:
        conn = listener.accept()[0]
        conn.settimeout({WAIT_S})
        try:
            conn.sendall(greeting)
            while True:
                data = conn.recv(1000)
                if not data:
                    break
                heard.append(data)
        except OSError:
            pass
        conn.close()

def connect(path):
    with socket.socket(socket.AF_UNIX) as conn:
        conn.connect(path)
        conn.sendall(b"'import os; os._exit(0)'\\n")

def squat(path, greeting):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(9)
    os.chmod(path, 0o777)
    threading.Thread(target=serve, args=(listener, greeting.encode()), daemon=True).start()

def leave(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)

def read(path):
    with open(path, "rb") as file:
        file.read()

def tell():
    return repr(b"".join(heard)) if heard else ""

def write(path):
    open(path, "x").close()

does = dict(connect=connect, squat=squat, leave=leave, read=read, tell=tell, write=write,
            remove=os.unlink, move=os.rename, link=os.symlink, make=os.mkdir)
for line in sys.stdin:
    name, args = json.loads(line)
    try:
        said = does[name](*args)
    except OSError as exc:
        said = type(exc).__name__
    print(json.dumps(said), flush=True)
"""


class Neighbour:
    """Another user, who does what ``do`` says."""

    def __init__(self, folder: Path, server: Path) -> None:
        """folder: where all users make files; server: the socket of a server of ours."""
        self._folder, self._server = folder, server
        python = getattr(sys, "_base_executable", sys.executable)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([python, "-c", PROGRAM], text=True, **pipes)
        self._count = 0

    def close(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def do(self, name: str, *args: object) -> Any:
        """Have it do something; return what came of it, or the name of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, list(map(str, args))]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def fail(self, name: str, *args: object) -> None:
        """Have it try something; ``AssertionError`` unless that is refused."""
        done = self.do(name, *args)
        assert done == "PermissionError", f"another user could {name}: {done}"

    def run(self, choose: random.Random) -> None:
        """Do one kind of harm; ``AssertionError`` if it comes to anything."""
        self._count += 1
        place = self._folder / str(self._count)
        kind = choose.choice([self._enter, self._enter, self._stand_in, self._be_first])
        kind(choose, place)

    def _enter(self, choose: random.Random, place: Path) -> None:
        name, *args = choose.choice(
            [
                ("connect", self._server),
                ("remove", self._server),
                ("move", self._server, place),
                ("read", execnet.script.socketserver.default_key()),
            ]
        )
        self.fail(name, *args)

    def _stand_in(self, choose: random.Random, place: Path) -> None:
        """Listen where somebody expects a server of ours."""
        greeting = choose.choice(
            ["", f"execnet-auth-1 plain {choose.randbytes(32).hex()}\n", "x\n"]
        )
        assert self.do("squat", place, greeting) is None
        group = execnet.Group()
        try:
            group.makegateway(f"socket=unix:{place}//env:SECRET=x//connect_timeout=3")
            raise AssertionError("somebody else's server was taken")
        except execnet.AuthenticationError:
            pass
        finally:
            group.terminate(timeout=1.0)
        told = self.do("tell")
        assert not told, f"somebody else was told {told}"

    def _be_first(self, choose: random.Random, place: Path) -> None:
        """Take the path of a server that is about to start."""
        how = choose.choice(["squat", "leave", "link", "make", "write"])
        elsewhere = [self._folder / f"{self._count}-elsewhere"]
        args = {"squat": [place, ""], "link": [*elsewhere, place]}.get(how, [place])
        assert self.do(how, *args) is None
        try:
            listener = execnet.script.socketserver.listen(str(place))
        except OSError:
            return  # it says so, and serves nobody
        with listener:
            assert how == "leave", f"a server listens where there was a {how}"
            self.fail("connect", place)
        place.unlink()
