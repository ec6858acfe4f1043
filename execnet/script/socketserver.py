"""A server that starts an interpreter for each client that connects.

It knows nothing of execnet: it runs ``python -c "import sys;exec(eval(sys.stdin.readline()))"``
with the connection as stdin and stdout, and what the client sends next does the rest.  Clients
of execnet 1 and 2 find the names that their own servers give them.  So whoever can connect can
run code.  Each client has a process of its own.

This file runs standing alone, from Python 2.7 on, so its types are in comments; it runs as
well as ``gateway.remote_exec(socketserver)``.  Start at ``main``, ``serve_channel`` and
``Server.run``.
"""

import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

try:
    from _operator import _compare_digest as compare_digest
except ImportError:  # hmac has it everywhere, and loads a library for it
    from hmac import compare_digest  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple, Union  # noqa: F401 - in comments
    Address = Union[str, Tuple[str, int]]  # a path, or host and port

INTERPRETER = sys.executable
# What the process of a client runs: the string that comes as a line.  Code that was written for
# released servers finds the connection under a name.  What asks for "in_own_process" knows of
# both kinds, and is content with stdin and stdout.
FIRST_STAGE = (
    "import sys;as_released=sys.argv.pop();code=eval(sys.stdin.readline());in_own_process=True;"
    "exec(as_released if 'clientsock' in code and 'in_own_process' not in code else code)"
)
# Executes the string with the names that released servers give it.  As there, stdin and stdout
# are not the connection; what is printed goes to the server's stderr.
AS_RELEASED = """
import os, socket, subprocess, sys, threading, time
try:
    import _thread, queue
except ImportError:
    import Queue as queue, thread as _thread

class ExecModel(object):
    backend = "thread"
    get_ident = staticmethod(_thread.get_ident)
    sleep = staticmethod(time.sleep)
    Lock, RLock, Event = map(staticmethod, (threading.Lock, threading.RLock, threading.Event))

    def __init__(self):
        self.queue, self.socket, self.subprocess = queue, socket, subprocess

    def __repr__(self):
        return "<ExecModel 'thread'>"

    def start(self, func, args=()):
        thread = threading.Thread(target=func, args=args)
        thread.daemon = True
        thread.start()
        return thread

    def fdopen(self, fd, mode, bufsize=1):
        return os.fdopen(fd, mode, -1 if bufsize == 1 and "b" in mode else bufsize)

model = ExecModel()

def pump(read, write, end):
    try:
        data = read(65536)
        while data:
            write(data)
            data = read(65536)
        end()
    except EnvironmentError:
        pass  # one of both sides has gone

def take_connection():
    wait = int
    try:
        conn = socket.fromfd(0, socket.AF_INET, socket.SOCK_STREAM)
        conn.getsockname()
    except (EnvironmentError, AttributeError):  # pipes lead to it, as on Windows
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        conn = socket.create_connection(listener.getsockname())
        near = listener.accept()[0]
        listener.close()
        stdin, stdout = os.dup(0), os.dup(1)
        model.start(pump, (lambda size: os.read(stdin, size), near.sendall,
                           lambda: near.shutdown(socket.SHUT_WR)))
        wait = model.start(pump, (near.recv, lambda data: os.write(stdout, data),
                                  lambda: os.close(stdout))).join
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return conn, wait

clientsock, wait = take_connection()
names = {"clientsock": clientsock, "__name__": "__main__"}
if "get_execmodel" not in code:  # else it takes one of its own version, which knows more
    names["execmodel"] = model
try:
    names["address"] = clientsock.getpeername()
    exec(code, names)
finally:
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()  # it may use the connection
    try:
        clientsock.shutdown(socket.SHUT_WR)
    except EnvironmentError:
        pass  # the code has closed it
    wait()
"""
PY2 = sys.version_info[0] == 2
WINDOWS = sys.platform == "win32"  # where a socket can't be a process's stdin
GREETING_S = 60  # how long a client may take until what it sends is for a process
ENDS_WITHIN_S = 15  # for a process whose client has left; a worker takes 10 at most
TICK_S = 0.5  # how soon it sees that it is to end; no pipe can wake it up on Windows
LAST_WORDS_S = 5  # for threads to see that their process was killed
# What a client sends is a string in quotes.  Other protocols begin otherwise: that of web pages
# too, whose requests could be expressions.
QUOTES = b"'", b'"'
# What a client may send to the server itself, before anything else: b"\0", a word and b"\n".
QUIT = b"quit"
WORD_BYTES = 200
ENDING = b"ending\n"  # the answer to it
RDHUP = getattr(select, "POLLRDHUP", 0x2000 if sys.platform.startswith("linux") else 0)


def parse_address(text):
    # type: (str) -> Address
    """Return the path of "unix:/path", (host, port) of others; no host means loopback."""
    if text.startswith("unix:") and len(text) > 5 and hasattr(socket, "AF_UNIX"):
        return text[5:]
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        port = ""  # it may be a part of the host
    if not port.isdigit() or int(port) > 65535:
        raise ValueError("%r is not host:port, [IPv6 host]:port or unix:/path" % (text,))
    return host or "127.0.0.1", int(port)


def format_address(address):
    # type: (Address) -> str
    """Return what ``parse_address`` reads."""
    if isinstance(address, tuple):
        return ("[%s]:%d" if ":" in address[0] else "%s:%d") % address
    return "unix:" + address


def listen(address):
    # type: (Address) -> socket.socket
    """Return a socket that listens there; one at a path is for its owner only."""
    if isinstance(address, tuple):
        options = 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        family, _, _, _, place = socket.getaddrinfo(address[0], address[1], *options)[0]
    else:
        family, place = socket.AF_UNIX, address  # type: ignore[assignment]
        if _is_stale(address):
            os.unlink(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not isinstance(address, tuple):
            mask = os.umask(0o177)  # 0600 from the first moment on
        elif not WINDOWS:  # where it would let others take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(place)
        finally:
            if not isinstance(address, tuple):
                os.umask(mask)
        listener.listen(128)
        return listener
    except BaseException:
        listener.close()
        raise


def _is_stale(path):
    # type: (str) -> bool
    """Whether a path is a socket that nobody listens at."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except EnvironmentError as exc:
        return exc.errno == errno.ECONNREFUSED and stat.S_ISSOCK(os.lstat(path).st_mode)
    finally:
        probe.close()
    return False


def keep_alive(conn):
    # type: (socket.socket) -> None
    """Send small frames at once; notice within minutes that the other machine is gone."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if conn.family != getattr(socket, "AF_UNIX", None):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
            if hasattr(socket, name):
                conn.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _shut(conn):
    # type: (socket.socket) -> None
    """End a connection for all who hold it, and wake up who waits for it."""
    try:
        conn.shutdown(socket.SHUT_RDWR)
    except EnvironmentError:
        pass  # the other side was faster


class Client(object):
    """One connection and the process that serves it.

    ``run`` has a thread of its own; any thread may call ``kill``.
    """

    def __init__(self, server, conn):
        # type: (Server, socket.socket) -> None
        self.thread = None  # type: Any
        self.conn = conn
        self.process = None  # type: Any
        self._server = server
        self._ended = threading.Event()

    def run(self):
        # type: () -> None
        """Serve the connection until the process has ended."""
        helpers = []
        try:
            keep_alive(self.conn)
            if self._wants_process() and self._server.start_process(self):
                pumps = [self._pump_out] if self.process.stdout is not None else []
                helpers = [_start(target) for target in pumps + [self._watch]]
                self.process.wait()
        except EnvironmentError as exc:
            sys.stderr.write("execnet socket server: a client failed: %s\n" % (exc,))
        finally:
            self._ended.set()
            for thread in helpers[:-1]:  # what was printed is on its way out
                thread.join(LAST_WORDS_S)
            _shut(self.conn)  # also if a child of the process holds it open
            for thread in helpers[-1:]:
                thread.join(LAST_WORDS_S)
            self.conn.close()

    def kill(self):
        # type: () -> None
        """End the process, and what it started in its session."""
        process = self.process
        if process is None:
            _shut(self.conn)
        elif process.poll() is None:
            try:
                process.kill() if WINDOWS else os.killpg(process.pid, signal.SIGKILL)
            except OSError:
                pass  # it has just ended

    def _wants_process(self):
        # type: () -> bool
        """Act on the words for the server; whether something for a process follows."""
        secret = self._server.secret
        deadline = time.time() + GREETING_S
        try:
            first = self._peek(deadline)
            while first == b"\0":
                word = self._read_word(deadline)
                if secret is None and word == QUIT:
                    self.conn.sendall(ENDING)
                    self._server.stop()
                    self._server.unbound.wait(LAST_WORDS_S)  # only then the connection ends
                    return False
                if secret is None or not compare_digest(word, secret):
                    return False
                secret = None
                first = self._peek(deadline)
            self.conn.settimeout(None)  # before a process shares the descriptor's flags
            return first in QUOTES and secret is None
        except EnvironmentError:  # silent for too long, or gone
            return False

    def _peek(self, deadline):
        # type: (float) -> bytes
        """Return the next byte without taking it; b"" at the end."""
        self.conn.settimeout(max(0.001, deadline - time.time()))
        return self.conn.recv(1, socket.MSG_PEEK)

    def _read_word(self, deadline):
        # type: (float) -> bytes
        """Return what is between b"\\0" and b"\\n"; b"" for what is no word."""
        word = b""
        while len(word) < WORD_BYTES and not word.endswith(b"\n") and self._peek(deadline):
            word += self.conn.recv(1)
        return word[1:-1] if word.endswith(b"\n") else b""

    def _watch(self):
        # type: () -> None
        """End a process that stays when its client has left."""
        if self.process.stdin is None:
            poll = select.poll()
            poll.register(self.conn, RDHUP)
            poll.poll()
        else:
            stdin = self.process.stdin
            _pump(self.conn.recv, lambda data: (stdin.write(data), stdin.flush()))
            stdin.close()
        if not self._ended.wait(ENDS_WITHIN_S):
            self.kill()

    def _pump_out(self):
        # type: () -> None
        stdout = self.process.stdout
        _pump(lambda size: os.read(stdout.fileno(), size), self.conn.sendall)
        stdout.close()


def _pump(read, write):
    # type: (Callable[[int], bytes], Callable[[bytes], object]) -> None
    """Pass bytes on until their end."""
    try:
        data = read(65536)
        while data:
            write(data)
            data = read(65536)
    except EnvironmentError:
        pass  # one of both sides has gone


def _start(target):
    # type: (Callable[[], object]) -> threading.Thread
    thread = threading.Thread(target=target, name="execnet-socketserver")
    thread.daemon = True
    thread.start()
    return thread


class Server(object):
    """Accepts connections and has a process started for each.

    clients: how many to serve before it ends; 0 for any number.  secret: what a client must
    send first.  listen_s: seconds after which it stops to listen.  ``_lock`` guards
    ``_stopping``, ``_left`` and the start of a process; any thread may call ``stop``.
    """

    def __init__(self, listener, clients=0, secret=None, listen_s=float("inf")):
        # type: (socket.socket, int, Optional[bytes], float) -> None
        self.secret = secret
        name = listener.getsockname()
        self.address = name[:2] if isinstance(name, tuple) else name  # type: Address
        self.unbound = threading.Event()  # others may listen there
        self._inode = None if isinstance(name, tuple) else os.stat(name).st_ino
        self._listener = listener
        self._left = clients or -1  # how many clients may still come
        self._listen_until = time.time() + listen_s
        self._cwd = os.getcwd()  # whatever becomes of this process's, clients begin here
        self._lock = threading.Lock()
        self._clients = []  # type: List[Client]
        self._stopping = False
        self.end = None  # type: Any

    def run(self):
        # type: () -> None
        """Serve until ``stop``, or until the last of a limited number of clients has ended."""
        try:
            self._listener.settimeout(TICK_S)
            while not self._stopping and self._left and time.time() < self._listen_until:
                self._accept()
            self._close_listener()
            for client in self._clients:
                while not self._stopping and client.thread.is_alive():
                    client.thread.join(TICK_S)
        finally:
            self._end()

    def stop(self):
        # type: () -> None
        """Have ``run`` end soon, and all processes with it.  Signal handlers may call it."""
        self._stopping = True
        _shut(self._listener)  # wakes up who waits there, on Linux

    def start_process(self, client):
        # type: (Client) -> bool
        """Give a client its process; False if there are to be no more."""
        options = {"cwd": self._cwd}  # type: Dict[str, Any]
        if WINDOWS:
            options.update(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        else:
            options.update(stdin=client.conn, stdout=client.conn, close_fds=True)
            # A session of its own: the terminal's Ctrl-C is for this server.
            options.update({"preexec_fn": os.setsid} if PY2 else {"start_new_session": True})
        with self._lock:
            if self._stopping or self._left == 0:
                return False
            command = [INTERPRETER, "-u", "-c", FIRST_STAGE, AS_RELEASED]
            client.process = subprocess.Popen(command, **options)
            self._left -= 1
        return True

    def _accept(self):
        # type: () -> None
        try:
            client = Client(self, self._listener.accept()[0])
        except (EnvironmentError, select.error):  # select's: a signal came, on Python 2
            time.sleep(0.01)  # it was no timeout, perhaps, but there are too many descriptors
            return
        self._clients = [other for other in self._clients if other.thread.is_alive()]
        try:
            client.thread = _start(client.run)
            self._clients.append(client)
        except (RuntimeError, threading.ThreadError):  # there are too many
            client.conn.close()

    def _close_listener(self):
        # type: () -> None
        if not self.unbound.is_set() and not isinstance(self.address, tuple):
            try:
                if os.stat(self.address).st_ino == self._inode:  # not another server's
                    os.unlink(self.address)
            except OSError:
                pass  # somebody has removed it
        self._listener.close()
        self.unbound.set()

    def _end(self):
        # type: () -> None
        self._close_listener()
        with self._lock:  # who is about to start a process has done so now, or will not
            self._stopping = True
        for client in self._clients:
            client.kill()
        for client in self._clients:
            client.thread.join(LAST_WORDS_S)


def serve_channel(channel):
    # type: (Any) -> None
    """Serve in a worker at the address that the channel gives; end with the gateway.

    The address is (host, port), or (host, port, options for ``Server``); then the server
    runs beside other code of the worker.  Sends the (host, port) that it is bound to.
    """
    request = channel.receive()
    options = dict(request[2:] and request[2])
    server = Server(listen((str(request[0]), request[1])), **options)
    thread = _start(server.run)

    def stop(_):
        # type: (object) -> None
        server.stop()
        thread.join(LAST_WORDS_S)

    server.end = channel.gateway.newchannel()  # nobody else knows it: it ends with the gateway
    server.end.setcallback(stop, endmarker=None)
    channel.send(tuple(server.address))
    model = channel.gateway.execmodel
    while not options and thread.is_alive():
        (thread.join if model.has_main_thread else model.sleep)(TICK_S)  # others run meanwhile


def main(args=None):
    # type: (Optional[List[str]]) -> None
    """Serve at the address that the command line gives until a signal comes."""
    import argparse  # not for those who only take something from here

    parser = argparse.ArgumentParser(
        description="Start a Python interpreter for each client that connects.",
        epilog="WHOEVER CAN CONNECT CAN RUN CODE as the user that you are now.  There is no "
        "password and no encryption: listen where only those can connect who may do that.",
    )
    explained = (
        "[host]:port or unix:/path; default %(default)s.  Without a host only this machine can "
        "connect, 0.0.0.0 or [::] is all networks; port 0 takes a free one and prints it"
    )
    parser.add_argument("address", nargs="?", default=":8888", help=explained)
    options = parser.parse_args(args)
    try:
        server = Server(listen(parse_address(options.address)))
    except (ValueError, EnvironmentError) as exc:
        sys.exit("can't listen at %s: %s" % (options.address, exc))
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda signum, frame: server.stop())
    sys.stdout.write("listening on %s\n" % format_address(server.address))
    sys.stdout.flush()
    server.run()


if __name__ == "__channelexec__":
    serve_channel(channel)  # type: ignore[name-defined]  # noqa: F821 - the worker puts it there
elif __name__ == "__main__":
    main()
