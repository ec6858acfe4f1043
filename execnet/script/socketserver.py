"""A server that starts an interpreter for each client that connects and has the key.

It knows nothing of execnet: it runs ``python -c "import sys;exec(eval(sys.stdin.readline()))"``
with the connection as stdin and stdout, and the line that the client sends next does the rest.
The process is started when all of that line is here, if it is one string in quotes.  Clients of
execnet 1 and 2 find the names that their own servers give them.  So whoever has the key can run
code.  Each client has a process of its own.

The server speaks first: ``execnet-auth-1 plain|tls NONCE``.  If it says tls, TLS begins then.  The
client answers ``execnet-auth-1 NONCE BINDING PROOF``, the server ``execnet-auth-1 ok PROOF`` or
``execnet-auth-1 error SENTENCE``.  Only after that does the client send anything for a process.  A
proof is an HMAC-SHA256 (RFC 2104) over a word for its side, the mode, both nonces and the binding:
the hash of the certificate, or the address that the client has dialled.  So nobody in between can
pass a proof on to another server.

This file stands alone and runs from Python 2.7 on, so its types are in comments.  It also runs as
``gateway.remote_exec(socketserver)``.  Start at ``main``, ``serve_channel`` and ``Server.run``; for
clients at ``Prover``.
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
except ImportError:  # every hmac has it, but loads a library
    from hmac import compare_digest  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse  # noqa: F401 - in comments
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union  # noqa: F401 - in comments

    Address = Union[str, Tuple[str, int]]  # a path, or host and port

INTERPRETER = sys.executable
# What the process of a client runs: the string that comes as a line.  Code that was written for
# released servers finds the connection under a name.  Code that asks for "in_own_process" knows
# both kinds of servers, and uses stdin and stdout.
FIRST_STAGE = (
    "import sys;as_released=sys.argv.pop();code=eval(sys.stdin.readline());in_own_process=True;"
    "%sexec(as_released if 'clientsock' in code and 'in_own_process' not in code else code)"
)
# The line comes through a descriptor of its own, which becomes the connection after that.
BACK_TO_CONNECTION = "import os;os.dup2(1,0);"
# This executes the string with the names that released servers give it.  As there, stdin and stdout
# are not the connection; printed output goes to the server's stderr.
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
WINDOWS = sys.platform == "win32"  # there a socket can't be the stdin of a process
VERSION = b"execnet-auth-1"
VERSIONS = b"execnet-auth-"  # how lines of other versions begin as well
PROVES_WITHIN_S = 10  # how long a client may take, from the connection to the proof
SILENT_S = 2.0  # after that a server is taken for one that does not greet
GREETING_S = 60  # how long it may take after that until it sends something for a process
ENDS_WITHIN_S = 15  # how long a process may take whose client has left; a worker takes up to 10
TICK_S = 0.5  # how often it looks whether to end, if nothing can wake it up
LAST_WORDS_S = 5  # how long it waits for output to be sent, and for killed processes to go
VISITORS = 64  # how many clients may be there that have not proved anything
LINE_BYTES = 600  # the longest answer of a client or a server
FIRST_BYTES = 1 << 20  # the longest line for a process, without a proof; clients send 64 KiB
CHUNK_BYTES = 65536
# A client sends a line that is a string in quotes, and nothing else is evaluated: requests of web
# pages could be expressions, and can begin with a quote, too.
QUOTES = b"'", b'"'
# A client may send this to the server itself, before anything else: b"\0", a word and b"\n".
QUIT = b"\0quit\n"
ENDING = b"ending\n"  # the answer to it
COMMON_MACHINES = "x86_64", "i386", "i586", "i686", "aarch64", "armv6l", "armv7l", "riscv64"
RDHUP = getattr(select, "POLLRDHUP", 0x2000 if sys.platform.startswith("linux") else 0)
POLLS = hasattr(select, "poll")
clock = time.time if PY2 else time.monotonic


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
    """Return an address as text, which ``parse_address`` reads."""
    if isinstance(address, tuple):
        return ("[%s]:%d" if ":" in address[0] else "%s:%d") % address
    return "unix:" + address


def listen(address):
    # type: (Address) -> socket.socket
    """Return a socket that listens at an address; at a path only its owner can connect."""
    family, place = socket.AF_INET, address  # type: Tuple[int, Any]
    if not isinstance(address, tuple):
        family = socket.AF_UNIX
        if _is_stale(address):
            os.unlink(address)
    elif not address[0].replace(".", "").isdigit():  # for numbers it would load a codec in vain
        options = 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        family, _, _, _, place = socket.getaddrinfo(address[0], address[1], *options)[0]
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
    """Whether a path is a socket at which nobody listens."""
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


def home():
    # type: () -> str
    """Return the folder for keys."""
    return os.environ.get("EXECNET_HOME") or os.path.join(os.path.expanduser("~"), ".execnet")


def default_key():
    # type: () -> str
    """Return the file of the default key."""
    return os.path.join(home(), "key")


def read_key(path):
    # type: (str) -> bytes
    """Return the key in a file.

    Raises EnvironmentError if the file can't be read, ValueError if others can read it, or if it
    does not contain 32 bytes in hex: a shorter key could be guessed from a proof.
    """
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if not WINDOWS and found.st_mode & 0o077:
            raise ValueError("others may read the key in %s: chmod 600 %s" % (path, path))
        if not WINDOWS and found.st_uid not in (0, os.geteuid()):
            raise ValueError("the key in %s belongs to somebody else" % path)
        text = file.read(LINE_BYTES)
    try:
        return key_of(text)
    except ValueError:
        raise ValueError("there is no key in %s: one is 32 random bytes in hex" % path)


def key_of(text):
    # type: (bytes) -> bytes
    """Return the key that a text contains in hex; ValueError if it contains none."""
    import binascii

    try:
        key = binascii.unhexlify(text.strip())
    except (TypeError, binascii.Error):
        key = b""
    if len(key) != 32:
        raise ValueError("a key is 32 random bytes in hex")
    return key


def make_key(path):
    # type: (str) -> None
    """Write a new key, for its owner only, into a file that does not exist yet.

    If another process does so at the same time, the key may be that process's.  Nobody ever reads a
    part of a key.
    """
    import binascii

    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o700)
    name = "%s.%s" % (path, binascii.hexlify(os.urandom(8)).decode("ascii"))
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(binascii.hexlify(os.urandom(32)) + b"\n")
        try:
            os.link(name, path)  # type: ignore[attr-defined,unused-ignore]
            os.unlink(name)
        except (AttributeError, EnvironmentError):  # Python 2 on Windows, or such a file system
            if os.path.lexists(path):
                raise EnvironmentError(errno.EEXIST, "there is something already", path)
            os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def own_key():
    # type: () -> bytes
    """Return the default key, which is made now if there is none."""
    path = default_key()
    if not os.path.lexists(path):
        try:
            make_key(path)
        except EnvironmentError as exc:
            if exc.errno != errno.EEXIST:
                raise
    return read_key(path)


def proof(key, side, words):
    # type: (bytes, bytes, List[bytes]) -> bytes
    """Return the proof that a side has the key.

    words: what the proof is about; none of them contains a space.
    """
    import hashlib
    import hmac

    text = b" ".join([VERSION, side] + words)
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode("ascii")


def new_nonce():
    # type: () -> bytes
    """Return random bytes that were never used before, in hex."""
    import binascii

    return binascii.hexlify(os.urandom(32))


def binding_of(address):
    # type: (Any) -> bytes
    """Return the address of a server's socket, which both sides get from the system, as text."""
    host = address[0].partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return format_address((host, address[1])).encode("ascii")


def fingerprint_of(certificate):
    # type: (bytes) -> bytes
    """Return the SHA-256 of a certificate, in hex."""
    import hashlib

    return hashlib.sha256(certificate).hexdigest().encode("ascii")


class Prover(object):
    """The client's side of the protocol: lines in, lines out, without the newlines.

    Raises ValueError with a sentence if the other side is not what it should be.
    """

    def __init__(self, key):
        # type: (Optional[bytes]) -> None
        self._key = key
        self._words = []  # type: List[bytes]
        self._nonce = b""

    def greeted(self, line):
        # type: (bytes) -> Tuple[bool, bool]
        """Take the greeting; return whether TLS begins now, and whether a proof is wanted."""
        words = line.split(b" ")
        if words[0].startswith(VERSIONS) and words[0] != VERSION:
            names = words[0].decode("ascii", "replace"), VERSION.decode("ascii")
            raise ValueError("the server speaks %s, and this is a client for %s" % names)
        if len(words) != 3 or words[0] != VERSION or words[1] not in (b"plain", b"tls"):
            raise ValueError("no socket server greets so: %s" % printable(line[:80]))
        self._words = words[1:]
        return words[1] == b"tls", words[2] != b"-"

    def answer(self, binding, *purpose):
        # type: (bytes, bytes) -> bytes
        """Return the line that proves that we have the key; purpose: words of other servers."""
        assert self._key is not None
        self._nonce = new_nonce()
        self._words += list(purpose) + [self._nonce, binding]
        proved = proof(self._key, b"client", self._words)
        return b" ".join([VERSION, self._nonce, binding, proved])

    def proved(self, line):
        # type: (bytes) -> None
        """Take the server's answer; returns if the server has the key as well."""
        assert self._key is not None
        words = line.split(b" ", 2)
        if words[:2] == [VERSION, b"error"] and len(words) == 3:
            raise ValueError("the server refuses: %s" % printable(words[2]))
        wanted = [VERSION, b"ok", proof(self._key, b"server", self._words)]
        if len(words) != 3 or words[:2] != wanted[:2] or not compare_digest(words[2], wanted[2]):
            raise ValueError("what listens there has not proved that it has the key")


def connect(
    address,  # type: str
    timeout_s,  # type: float
    key_file=None,  # type: Optional[str]
    fingerprint=None,  # type: Optional[str]
    trusts=False,  # type: bool
    takes_silent=False,  # type: bool
):
    # type: (...) -> socket.socket
    """Return a connection to a server, after the proofs, for ``quitserver.py`` and ``shell.py``.

    key_file: None for the default one, if there is one.  fingerprint: of its certificate, which is
    enough for a server that asks for no key.  trusts: whether to ask for no proof, and take other
    users' servers at a path as well.  takes_silent: whether to take a server that does not greet,
    as those of execnet 1 and 2 and ours with --no-authentication, though there is a default key.
    Raises EnvironmentError or ValueError.
    """
    place = parse_address(address)
    if isinstance(place, tuple):
        conn = socket.create_connection(place, timeout_s)
    else:
        conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        conn.settimeout(timeout_s)
        if not isinstance(place, tuple):
            conn.connect(place)
            if not trusts and owner_of(conn, place) not in (0, os.geteuid()):
                raise ValueError("user %d listens there, not this one" % owner_of(conn, place))
            return conn
        return conn if trusts else _proved(conn, key_file, fingerprint, takes_silent)
    except BaseException:
        conn.close()
        raise


def owner_of(sock, path):
    # type: (socket.socket, str) -> int
    """Return the user of the process at the other end of a Unix socket.

    If the system does not say, that is the owner of the folder, if nobody else can make a socket
    there; else of the socket.
    """
    import struct

    # Python 2 does not know the number, which differs on a few kinds of processors.
    known = 17 if sys.platform.startswith("linux") and os.uname()[4] in COMMON_MACHINES else None
    peercred = getattr(socket, "SO_PEERCRED", known)  # type: Optional[int]
    if peercred is not None:
        found = sock.getsockopt(socket.SOL_SOCKET, peercred, struct.calcsize("3i"))
        # OpenBSD's struct sockpeercred begins with the user, Linux's struct ucred with the process.
        return int(struct.unpack("3I", found)[0 if sys.platform.startswith("openbsd") else 1])
    if sys.platform == "darwin" or "bsd" in sys.platform:  # LOCAL_PEERCRED and its struct xucred
        found = sock.getsockopt(0, 1, 76)
        if len(found) > 8 and found[:4] == struct.pack("I", 0):  # else another option, or version
            return int(struct.unpack("2I", found[:8])[1])
    folder = os.stat(os.path.dirname(os.path.abspath(path)))
    return os.lstat(path).st_uid if folder.st_mode & 0o022 else folder.st_uid


def _proved(conn, key_file, fingerprint, takes_silent):
    # type: (socket.socket, Optional[str], Optional[str], bool) -> socket.socket
    is_named = key_file is not None or fingerprint is not None
    if key_file is None and os.path.lexists(default_key()):
        key_file = default_key()
    prover = Prover(None if key_file is None else read_key(key_file))
    deadline = clock() + PROVES_WITHIN_S
    if not select.select([conn], [], [], PROVES_WITHIN_S if is_named else SILENT_S)[0]:
        if is_named or (key_file and not takes_silent):
            raise ValueError("it keeps silent: --no-authentication is for those that prove nothing")
        if not takes_silent:
            sys.stderr.write("it proves nothing, and whoever can connect there can run code\n")
        return conn
    is_tls, is_wanted = prover.greeted(read_line(conn, deadline))
    binding, relayed = binding_of(conn.getpeername()), conn  # type: bytes, socket.socket
    if is_tls:
        import ssl

        context = ssl.SSLContext(getattr(ssl, "PROTOCOL_TLS_CLIENT", ssl.PROTOCOL_SSLv23))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        relayed = context.wrap_socket(conn)
        binding = fingerprint_of(relayed.getpeercert(True) or b"")
    if fingerprint is not None and (not is_tls or binding.decode("ascii") != fingerprint):
        raise ValueError("its certificate has another fingerprint" if is_tls else "it has no TLS")
    if not is_wanted and fingerprint is None:
        shown = binding.decode("ascii")
        raise ValueError("it proves nothing: say --fingerprint %s if that is it" % shown)
    if is_wanted and key_file is None:
        raise ValueError("it asks for a key")
    if is_wanted:
        relayed.sendall(prover.answer(binding) + b"\n")
        prover.proved(read_line(relayed, deadline))
    if not is_tls:
        return conn
    near, far = socket.socketpair()  # two threads can't use one connection with TLS
    start_thread(Relay(relayed, far).run)
    return near


def read_line(conn, deadline):
    # type: (socket.socket, float) -> bytes
    line = b""
    while not line.endswith(b"\n"):
        conn.settimeout(max(0.001, deadline - clock()))
        byte = conn.recv(1)
        line += byte
        if not byte or len(line) > LINE_BYTES:
            raise ValueError("what listens there is no socket server that has the key")
    return line[:-1]


def printable(text):
    # type: (bytes) -> str
    """Return text from the other side without control characters."""
    shown = text.decode("ascii", "replace")
    return "".join(char if " " <= char <= "~" else "?" for char in shown)


def make_certificate():
    # type: () -> bytes
    """Return a new certificate and its private key, as PEM; EnvironmentError if none can be made.

    The name in it does not matter, since clients know its hash.
    """
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="execnet-cert-%d-" % os.getpid())
    try:
        config, key = os.path.join(folder, "config"), os.path.join(folder, "key")
        with open(config, "w") as file:
            file.write("[req]\nprompt=no\ndistinguished_name=name\n[name]\nCN=execnet\n")
        _openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key])
        request = ["req", "-x509", "-new", "-sha256", "-days", "3650", "-config", config]
        certificate = _openssl(request + ["-key", key])
        with open(key, "rb") as key_file:
            return certificate + key_file.read()
    finally:
        shutil.rmtree(folder)


def _openssl(args):
    # type: (List[str]) -> bytes
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)  # type: Dict[str, Any]
    try:
        process = subprocess.Popen(["openssl"] + args, **pipes)
    except EnvironmentError as exc:
        raise EnvironmentError("the program openssl, which makes certificates: %s" % exc)
    output, said = process.communicate(b"")  # type: bytes, bytes
    if process.returncode:
        text = said.decode("utf-8", "replace").strip()
        raise EnvironmentError("openssl made no certificate: %s" % text)
    return output


class Certificate(object):
    """A server's certificate for TLS; ``pem`` contains the private key as well."""

    def __init__(self, pem):
        # type: (bytes) -> None
        import ssl
        import tempfile

        text = pem.decode("ascii")
        mark = "-----BEGIN CERTIFICATE-----"
        der = ssl.PEM_cert_to_DER_cert(
            mark + text.partition(mark)[2].partition("-----END ")[0] + "-----END CERTIFICATE-----\n"
        )
        self.fingerprint = fingerprint_of(der)
        self._context = ssl.SSLContext(getattr(ssl, "PROTOCOL_TLS_SERVER", ssl.PROTOCOL_SSLv23))
        if hasattr(self._context, "minimum_version"):
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        else:
            for name in "OP_NO_SSLv2", "OP_NO_SSLv3", "OP_NO_TLSv1", "OP_NO_TLSv1_1":
                self._context.options |= getattr(ssl, name)
        # 0600; it takes files only
        fd, path = tempfile.mkstemp(prefix="execnet-cert-%d-" % os.getpid())
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(pem)
            self._context.load_cert_chain(path)
        finally:
            os.unlink(path)

    def wrap(self, conn):
        # type: (socket.socket) -> Any
        """Return a connection with TLS; nothing waits."""
        return self._context.wrap_socket(conn, True, do_handshake_on_connect=False)


READ, WRITE, HANGUP = 1, 2, 4


def forget_tls_errors():
    # type: () -> bool
    """Forget the errors of TLS in this thread; True if others could have met one of them.

    PyPy keeps the last one, and the next connection that has to wait would raise it instead.
    """
    if not hasattr(sys, "pypy_version_info"):
        return False
    import ssl

    try:  # this fails, and clears what OpenSSL keeps
        ssl.SSLContext(getattr(ssl, "PROTOCOL_TLS_CLIENT", ssl.PROTOCOL_SSLv23)).set_ciphers("-")
    except ssl.SSLError:
        pass
    return True


def waits_for(exc):
    # type: (BaseException) -> int
    """Return what an error says to wait for: READ or WRITE; 0 for a real error."""
    ssl = sys.modules.get("ssl")  # type: Any
    if ssl is not None and isinstance(exc, ssl.SSLError):
        wanted = {ssl.SSL_ERROR_WANT_READ: READ, ssl.SSL_ERROR_WANT_WRITE: WRITE}
        if exc.args[0] not in wanted:
            forget_tls_errors()
        return wanted.get(exc.args[0], 0)
    return READ if exc.args[:1] in ((errno.EAGAIN,), (errno.EWOULDBLOCK,), (errno.EINTR,)) else 0


def ready_of(wanted, timeout_s):
    # type: (Dict[int, int], float) -> Set[int]
    """Wait for events; return the descriptors that have one.  A signal ends the wait as well."""
    try:
        if not POLLS:
            sides = [[fd for fd in wanted if wanted[fd] & side] for side in (READ, WRITE)]
            found = select.select(sides[0], sides[1], [], timeout_s)
            return set(found[0] + found[1])
        poll = select.poll()
        events = {READ: select.POLLIN, WRITE: select.POLLOUT, HANGUP: RDHUP}
        events[READ | WRITE] = select.POLLIN | select.POLLOUT
        for fd in wanted:
            poll.register(fd, events[wanted[fd]])
        return {fd for fd, _ in poll.poll(int(timeout_s * 1000) + 1)}
    except (EnvironmentError, select.error) as exc:
        if exc.args[0] != errno.EINTR:
            raise
        return set()


def shut(conn, how=socket.SHUT_RDWR):
    # type: (Any, int) -> None
    """End a connection, not its TLS, for all that hold it, and wake up whatever waits for it."""
    is_usual = isinstance(conn, socket.socket)  # one of a pair is not, in Python 2
    try:
        socket.socket.shutdown(conn, how) if is_usual else conn.shutdown(how)
    except EnvironmentError:
        pass  # the other side was faster


class Refused(Exception):
    """A client is turned away; the text is sent to it."""


class Visitor(object):
    """A connection that has no process yet: it may have to prove that it has the key.

    Nothing here waits; ``_step`` is the next step, and raises an error if it would have to wait.
    """

    def __init__(self, server, conn, host):
        # type: (Server, socket.socket, str) -> None
        self.conn = conn  # type: Any
        self.host = host
        self.writes = False  # whether TLS waits until it can write
        self.is_known = False  # whether it has proved that it has the key
        self.deadline = clock() + (PROVES_WITHIN_S if server.greets else GREETING_S)
        self._server = server
        self._words = []  # type: List[bytes]
        self._line = b""
        self._first = bytearray()  # of the first line after the proof
        self._step = self._greet if server.greets else self._take_first

    def advance(self):
        # type: () -> bool
        """Take all steps that are possible now; False if this connection needs no more."""
        try:
            while self._step is not None:
                self._step()
            return False
        except Refused as exc:
            try:
                self._say(b"error", str(exc).encode("ascii", "replace"))
            except EnvironmentError:
                pass
        except EnvironmentError as exc:
            waits = waits_for(exc)
            self.writes = waits == WRITE
            if waits:
                return True
        self.close()
        return False

    def close(self):
        # type: () -> None
        """Turn it away."""
        self._step = None  # type: ignore[assignment]
        shut(self.conn)
        self.conn.close()

    def _say(self, *words):
        # type: (bytes) -> None
        line = b" ".join((VERSION,) + words) + b"\n"
        if self.conn.send(line) != len(line):
            raise EnvironmentError("it takes nothing")

    def _greet(self):
        # type: () -> None
        server = self._server
        mode = b"plain" if server.certificate is None else b"tls"
        self._words = [mode, b"-" if server.key is None else new_nonce()]
        self._say(*self._words)
        if server.certificate is not None:
            self.conn = server.certificate.wrap(self.conn)
        self._step = self._hear if server.certificate is None else self._shake

    def _shake(self):
        # type: () -> None
        self.conn.do_handshake()
        self._step = self._take_first if self._server.key is None else self._hear

    def _hear(self):
        # type: () -> None
        data = self.conn.recv(LINE_BYTES)
        self._line += data
        if b"\n" in self._line:
            self._check(*self._line.split(b"\n", 1))
        elif not data:
            self.close()
        elif len(self._line) > LINE_BYTES:
            raise Refused("that is no proof")

    def _check(self, line, rest):
        # type: (bytes, bytes) -> None
        words = line.split(b" ")
        if words[0] != VERSION and words[0].startswith(VERSIONS):
            raise Refused("this server speaks %s only" % VERSION.decode("ascii"))
        if words[0] != VERSION or len(words) != 4 or len(words[1]) != 64 or rest:
            raise Refused("this server lets in only those who prove that they have the key")
        key, (nonce, binding, proved) = self._server.key, words[1:]
        assert key is not None
        self._words += [nonce, binding]
        if not compare_digest(proved, proof(key, b"client", self._words)):
            raise Refused("the client has another key")
        if self._server.certificate is not None:
            if binding != self._server.certificate.fingerprint:
                raise Refused("the client has seen another certificate: somebody is in between")
        elif binding != binding_of(self.conn.getsockname()):
            reached = binding_of(self.conn.getsockname()).decode("ascii")
            said = "the client has dialled %s, and this is %s: through a forwarded port, its "
            raise Refused((said + "spec needs bound=%s") % (printable(binding), reached, reached))
        self.is_known = True
        self._admit(proof(key, b"server", self._words))

    def _admit(self, proved):
        # type: (bytes) -> None
        self._say(b"ok", proved)
        self.deadline = clock() + GREETING_S
        self._step = self._take_first

    def _take_first(self):
        # type: () -> None
        """Take the first line: is it for a process, or a word for the server?"""
        if self._server.certificate is None:  # what follows is left for the process
            data = self.conn.recv(CHUNK_BYTES, socket.MSG_PEEK)
            data = data and self.conn.recv(data.find(b"\n") + 1 or len(data))
        else:
            data = self.conn.recv(CHUNK_BYTES)
        self._first += data
        if b"\n" in data:
            line, _, rest = bytes(self._first).partition(b"\n")
            self._take_line(line + b"\n", rest)
        elif not data or not self._may_go_on():
            self.close()

    def _may_go_on(self):
        # type: () -> bool
        """Whether what has come can still become a line that is taken."""
        if self._first[:1] == b"\0":
            return QUIT.startswith(bytes(self._first))
        is_short = self.is_known or len(self._first) < FIRST_BYTES
        return is_short and self._first[:1] in QUOTES

    def _take_line(self, line, rest):
        # type: (bytes, bytes) -> None
        if line == QUIT:
            self._step = None  # type: ignore[assignment]
            self.conn.send(ENDING)
            self._server.quit(self.conn)
        elif is_string(line):
            self._step = None  # type: ignore[assignment]
            self._server.start_process(self, line, rest)
        else:
            self.close()


def is_string(line):
    # type: (bytes) -> bool
    """Whether a line, with its newline, is one string in quotes and nothing else."""
    import re

    quote, inner, end = line[:1], line[1:-2], line[-2:]
    inner = re.sub(b"\\\\.", b"", inner)  # a backslash and whatever it makes of the next one
    is_closed = len(line) > 2 and quote in QUOTES and end == quote + b"\n"
    return is_closed and quote not in inner and b"\\" not in inner


class Session(object):
    """The process of a client.

    Only the thread of ``Server.run`` calls.  near: the stdin and stdout of the process, which
    first reads ``line`` from ``feeder``.  If the server is not told when processes end, a thread
    waits for that.
    """

    def __init__(self, server, near, line):
        # type: (Server, socket.socket, bytes) -> None
        self.near = near
        self.feeder = None  # type: Optional[socket.socket]
        self._line = line  # what has not been passed on yet
        self.watches = not WINDOWS  # whether ``near`` shows that the client has left
        self.kill_at = float("inf")
        self._server = server
        self.over = threading.Event()
        self._helpers = []  # type: List[threading.Thread]
        options = {"cwd": server.cwd}  # type: Dict[str, Any]
        if WINDOWS:
            options.update(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        else:
            self.feeder, fed = socket.socketpair()
            options.update(stdin=fed, stdout=near, close_fds=True)
            # A session of its own, as Ctrl-C at the terminal is meant for this server.
            options.update({"preexec_fn": os.setsid} if PY2 else {"start_new_session": True})
        near.setblocking(True)  # now: a process will share the flags of the descriptor
        stage = FIRST_STAGE % ("" if WINDOWS else BACK_TO_CONNECTION)
        command = [INTERPRETER, "-u", "-c", stage, AS_RELEASED]
        try:
            self.process = subprocess.Popen(command, **options)  # type: Any
        except BaseException:
            self._close_feeder()
            raise
        finally:
            if not WINDOWS:
                fed.close()
        if self.feeder is not None:
            self.feeder.setblocking(False)
            self.feed()
        if not server.hears_of_ends:
            pumps = [self._pump_out, self._pump_in] if WINDOWS else []
            try:
                for target in pumps + [self._wait]:
                    self._helpers.append(start_thread(target))
            except BaseException:  # there are too many threads
                self.kill()
                self.process.wait()
                self._close_feeder()
                raise

    def feed(self):
        # type: () -> None
        """Pass on as much of the line as the process takes now."""
        assert self.feeder is not None
        try:
            self._line = self._line[self.feeder.send(self._line) :]
        except EnvironmentError as exc:
            if waits_for(exc):
                return
            self._line = b""  # the process has ended
        if not self._line:
            self._close_feeder()

    def _close_feeder(self):
        # type: () -> None
        if self.feeder is not None:
            self.feeder.close()
            self.feeder = None

    def has_ended(self):
        # type: () -> bool
        """Whether the process has ended, and its output was passed on."""
        if self._server.hears_of_ends:
            return self.process.poll() is not None
        return self.over.is_set()

    def on_left(self):
        # type: () -> None
        """Note that the client has left; the process has some time to end by itself."""
        self.watches = False
        self.kill_at = clock() + ENDS_WITHIN_S

    def kill(self):
        # type: () -> None
        """End the process and all that it started in its session."""
        self.kill_at = float("inf")
        if self.process.poll() is None:
            try:
                self.process.kill() if WINDOWS else os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass  # it has just ended

    def end(self, wait_s):
        # type: (float) -> None
        """Let the client read the end, even if a child of the process holds the descriptor."""
        deadline = clock() + wait_s
        while not self.has_ended() and clock() < deadline:
            self.over.wait(0.01)
        shut(self.near)
        for thread in self._helpers:
            thread.join(LAST_WORDS_S)
        self._close_feeder()
        self.near.close()

    def _wait(self):
        # type: () -> None
        self.process.wait()
        for thread in self._helpers[:1] if WINDOWS else []:  # until the output was passed on
            thread.join(LAST_WORDS_S)
        self.over.set()
        self._server.wake()

    def _pump_in(self):
        # type: () -> None
        stdin, lines = self.process.stdin, [self._line]
        _pump(
            lambda size: lines.pop() if lines else self.near.recv(size),
            lambda data: (stdin.write(data), stdin.flush()),
        )
        try:
            stdin.close()
        except EnvironmentError:
            pass  # nobody needs what was left in it
        self.on_left()
        self._server.wake()

    def _pump_out(self):
        # type: () -> None
        stdout = self.process.stdout
        _pump(lambda size: os.read(stdout.fileno(), size), self.near.sendall)
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


def start_thread(target):
    # type: (Callable[[], object]) -> threading.Thread
    thread = threading.Thread(target=target, name="execnet-socketserver")
    thread.daemon = True
    thread.start()
    return thread


class Way(object):
    """One direction of a ``Relay``: bytes that were read and have to be written."""

    def __init__(self, source, sink, taken=b""):
        # type: (socket.socket, socket.socket, bytes) -> None
        self.source, self.sink, self.data = source, sink, taken
        self.is_read = False  # whether it was read to its end
        self.is_over = False  # and the other side knows that

    def move(self, waits):
        # type: (Dict[socket.socket, int]) -> bool
        """Move some bytes; False if that has to wait, for what it then notes in ``waits``."""
        if not self.data and not self.is_read:
            data = self._tried(self.source, lambda: self.source.recv(65536), waits, READ)
            self.data = data or b""
            return bool(self.data) or self.is_read
        if self.data:
            sent = self._tried(self.sink, lambda: self.sink.send(self.data), waits, WRITE)
            self.data = self.data[sent or 0 :]
            return bool(sent)
        return False

    def _tried(self, sock, func, waits, side):
        # type: (socket.socket, Callable[[], Any], Dict[socket.socket, int], int) -> Any
        try:
            result = func()
        except EnvironmentError as exc:
            if waits_for(exc):
                waits[sock] = waits.get(sock, 0) | (WRITE if waits_for(exc) == WRITE else side)
                return None
            self.data, self.is_read = b"", True  # nobody reads or writes any more
            return b"" if side == READ else None
        if not result and side == READ:
            self.is_read = True
        elif not result:  # in some versions this means that TLS has to wait
            waits[sock] = waits.get(sock, 0) | WRITE
        return result


class Relay(object):
    """Passes bytes on between a connection with TLS and a socket, in one thread, both ways.

    A write never keeps it from reading.  ``run`` returns when both directions have ended, or a
    while after the process has ended.
    """

    def __init__(self, conn, inner, taken=b""):
        # type: (socket.socket, socket.socket, bytes) -> None
        self.conn, self.inner = conn, inner
        self._inwards, self._outwards = Way(conn, inner, taken), Way(inner, conn)
        for sock in conn, inner:
            sock.setblocking(False)

    def run(self):
        # type: () -> None
        """Pass on everything that comes."""
        ways, deadline = (self._inwards, self._outwards), float("inf")
        try:
            while not all(way.is_over for way in ways) and clock() < deadline:
                waits = {}  # type: Dict[socket.socket, int]
                moved = [way.move(waits) for way in ways]
                if True not in moved and waits:
                    timeout_s = max(0.0, min(deadline - clock(), 3600.0))
                    ready_of({sock.fileno(): waits[sock] for sock in waits}, timeout_s)
                for way in ways:
                    if way.is_read and not way.data and not way.is_over:
                        way.is_over = True
                        self.tell_end(way)
                if self._outwards.is_read and deadline == float("inf"):
                    deadline = clock() + LAST_WORDS_S
        finally:
            for sock in self.inner, self.conn:
                shut(sock)
                sock.close()

    def tell_end(self, way):
        # type: (Way) -> None
        shut(way.sink, socket.SHUT_WR)


class Server(object):
    """Accepts connections and starts a process for each client that may have one.

    clients: how many to serve before it ends; 0 for any number.  key: what a client must prove
    that it has; None lets everybody in.  certificate: for TLS.  listen_s: seconds after which it
    stops listening.  is_alone: whether it has the process for itself, and ``run`` is called in the
    main thread; then it starts no thread.  Any thread and signal handlers may call ``stop`` and
    ``wake``; the thread that calls ``run`` does everything else.
    """

    visitor_class = Visitor

    def __init__(
        self,
        listener,  # type: socket.socket
        clients=0,  # type: int
        key=None,  # type: Optional[bytes]
        certificate=None,  # type: Optional[Certificate]
        listen_s=float("inf"),  # type: float
        is_alone=False,  # type: bool
    ):
        # type: (...) -> None
        self.key, self.certificate = key, certificate
        self.greets = key is not None or certificate is not None
        name = listener.getsockname()
        self.address = name[:2] if isinstance(name, tuple) else name  # type: Address
        self.cwd = os.getcwd()  # clients begin here, even if this process changes its folder
        self.hears_of_ends = is_alone and hasattr(signal, "SIGCHLD") and not WINDOWS
        self.end = None  # type: Any
        self.notes = []  # type: List[str]
        self._inode = None if isinstance(name, tuple) else os.stat(name).st_ino
        self._listener = listener
        self._listens = True
        self._listen_until = clock() + listen_s
        self._accept_from = 0.0  # after a pause, if there are too many descriptors
        self._left = clients or -1  # how many clients may still come
        self._room = _room()
        self._visitors = []  # type: List[Visitor]
        self._sessions = []  # type: List[Session]
        self._pumps = []  # type: List[int]
        self._leaving = []  # type: List[socket.socket]
        self._stopping = False
        self._woken, self._waker = _socket_pair()
        listener.setblocking(False)

    def run(self):
        # type: () -> None
        """Serve until ``stop``, or until the last one of a limited number of clients has left."""
        handlers = self._hear_of_ends() if self.hears_of_ends else None
        try:
            while not self._stopping and (self._listens or self._visitors or self._sessions):
                self._turn()
        finally:
            self._end()
            if handlers is not None:
                signal.set_wakeup_fd(handlers[0])
                signal.signal(signal.SIGCHLD, handlers[1])
            for sock in (self._woken, self._waker):
                if sock is not None:
                    sock.close()

    def stop(self):
        # type: () -> None
        """Make ``run`` end soon, and all processes with it."""
        self._stopping = True
        self.wake()

    def wake(self):
        # type: () -> None
        """Make ``run`` look at everything."""
        try:
            if self._waker is not None:
                self._waker.send(b"w")
        except EnvironmentError:
            pass  # it has been woken often enough, or has ended

    def quit(self, conn):
        # type: (socket.socket) -> None
        """Stop at the request of a client; its connection ends when others can listen here."""
        self._leaving.append(conn)
        self._stopping = True

    def start_process(self, visitor, line, rest):
        # type: (Visitor, bytes, bytes) -> None
        """Give a client its process.  line, rest: what it has sent and was read here."""
        try:
            if self._left == 0:
                raise EnvironmentError("there are to be no more")
            if self.certificate is None:
                self._sessions.append(Session(self, visitor.conn, line))
            else:
                self._start_with_relay(visitor.conn, line, rest)
            self._left -= 1
        except (EnvironmentError, RuntimeError, threading.ThreadError) as exc:
            sys.stderr.write("execnet socket server: a client failed: %s\n" % (exc,))
            visitor.close()

    def _start_with_relay(self, conn, line, rest):
        # type: (socket.socket, bytes, bytes) -> None
        near, far = socket.socketpair()
        try:
            session = Session(self, near, line)
        except BaseException:
            near.close()
            far.close()
            raise
        self._sessions.append(session)
        try:
            relay = Relay(conn, far, rest)
            if not self.hears_of_ends:  # nothing may fork
                start_thread(relay.run)
                return
            self._fork(relay)
        except BaseException:
            far.close()  # so that the process ends
            raise
        conn.close()
        far.close()

    def _fork(self, relay):
        # type: (Relay) -> None
        """Relay in a separate process; a TLS session survives the fork."""
        pid = os.fork()
        if pid:
            self._pumps.append(pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            low = 3
            for high in sorted([relay.conn.fileno(), relay.inner.fileno()]) + [_descriptors()]:
                os.closerange(low, high)
                low = high + 1
            relay.run()
        finally:
            os._exit(0)

    def _hear_of_ends(self):
        # type: () -> Tuple[int, Any]
        """Let the end of a process wake us up; return the previous handlers."""
        handler = signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        assert self._waker is not None
        return signal.set_wakeup_fd(self._waker.fileno()), handler

    def _turn(self):
        # type: () -> None
        """Wait for something to happen, and handle it."""
        now = clock()
        wanted, moments = {}, [now + (TICK_S if self._woken is None else 3600.0)]
        if self._woken is not None:
            wanted[self._woken.fileno()] = READ
        if self._listens and now < self._accept_from:
            moments.append(self._accept_from)
        elif self._listens:
            wanted[self._listener.fileno()] = READ
            moments.append(self._listen_until)
        for visitor in self._visitors:
            wanted[visitor.conn.fileno()] = WRITE if visitor.writes else READ
            moments.append(visitor.deadline)
        for session in self._sessions:
            if session.watches and POLLS:
                wanted[session.near.fileno()] = HANGUP
            if session.feeder is not None:
                wanted[session.feeder.fileno()] = WRITE
            moments.append(session.kill_at)
        ready = ready_of(wanted, max(0.0, min(moments) - now))
        self._see_to_sessions(ready)
        self._see_to_visitors(ready)
        if self._woken is not None and self._woken.fileno() in ready:
            self._woken.recv(4096)
        if self._listens and self._listener.fileno() in ready:
            self._accept()
        if self._listens and (self._left == 0 or clock() > self._listen_until):
            self._close_listener()
            for visitor in self._visitors if self._left == 0 else []:
                visitor.close()
            self._visitors = [] if self._left == 0 else self._visitors

    def _see_to_sessions(self, ready):
        # type: (Set[int]) -> None
        now = clock()
        for session in self._sessions:
            if session.watches and session.near.fileno() in ready:
                session.on_left()
            if session.feeder is not None and session.feeder.fileno() in ready:
                session.feed()
            if session.kill_at <= now:
                session.kill()
        ended = [session for session in self._sessions if session.has_ended()]
        for session in ended:
            session.end(0)
        self._sessions = [session for session in self._sessions if session not in ended]
        self._pumps = [pid for pid in self._pumps if os.waitpid(pid, os.WNOHANG)[0] != pid]

    def _see_to_visitors(self, ready):
        # type: (Set[int]) -> None
        staying, now = [], clock()
        for visitor in self._visitors:
            if visitor.conn.fileno() not in ready and now < visitor.deadline:
                staying.append(visitor)
            elif now >= visitor.deadline:
                visitor.close()
            elif visitor.advance():
                staying.append(visitor)
        self._visitors = staying

    def _accept(self):
        # type: () -> None
        for _ in range(VISITORS):
            try:
                conn, place = self._listener.accept()
            except EnvironmentError as exc:
                if not waits_for(exc) and not self._drop_one():  # there are too many descriptors
                    self._accept_from = clock() + 0.1
                return
            conn.setblocking(False)
            try:
                keep_alive(conn)
            except EnvironmentError:  # it has gone already
                conn.close()
                continue
            visitor = self.visitor_class(self, conn, place[0] if isinstance(place, tuple) else "")
            if not visitor.advance():
                continue
            if len(self._visitors) >= self._room:  # one of those that had time to say something
                self._drop_one()
            self._visitors.append(visitor)

    def _drop_one(self):
        # type: () -> bool
        """Turn away a client without a proof, from the address that most of these come from."""
        strangers = [visitor for visitor in self._visitors if not visitor.is_known]
        if not strangers:
            return False
        hosts = [visitor.host for visitor in strangers]
        most = max(set(hosts), key=hosts.count)
        strangers = [visitor for visitor in strangers if visitor.host == most]
        number = int.from_bytes(os.urandom(4), "big") if not PY2 else int(new_nonce()[:8], 16)
        dropped = strangers[number % len(strangers)]
        dropped.close()
        self._visitors.remove(dropped)
        return True

    def _close_listener(self):
        # type: () -> None
        if self._listens and not isinstance(self.address, tuple):
            try:
                if os.stat(self.address).st_ino == self._inode:  # it is not another server's
                    os.unlink(self.address)
            except OSError:
                pass  # somebody has removed it
        self._listener.close()
        self._listens = False

    def _end(self):
        # type: () -> None
        self._close_listener()
        for conn in self._leaving:
            conn.close()
        for visitor in self._visitors:
            visitor.close()
        for session in self._sessions:
            session.kill()
        for session in self._sessions:
            session.end(LAST_WORDS_S)
        deadline = clock() + LAST_WORDS_S
        while self._pumps:
            self._pumps = [pid for pid in self._pumps if os.waitpid(pid, os.WNOHANG)[0] != pid]
            for pid in self._pumps if clock() > deadline else []:  # their clients read nothing
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01 if self._pumps else 0)


def _descriptors():
    # type: () -> int
    """Return how many descriptors this process may have."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return limit if 0 < limit < 1 << 20 else 1 << 20
    except ImportError:  # Windows
        return 512


def _room():
    # type: () -> int
    """Return how many clients may be there at once that have proved nothing."""
    return max(1, min(VISITORS, _descriptors() // 4))


def _socket_pair():
    # type: () -> Tuple[Any, Any]
    """Return the non-blocking (read end, write end) of a pipe; None where there is none."""
    if not hasattr(socket, "socketpair"):
        return None, None
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


def is_loopback(address):
    # type: (Address) -> bool
    """Whether only this machine can connect to a bound address; a path counts as well."""
    host = address[0] if isinstance(address, tuple) else "127."
    return host == "::1" or host.startswith(("127.", "::ffff:127."))


def serve_channel(channel):
    # type: (Any) -> None
    """Serve in a worker, at the address that comes over the channel, until the gateway ends.

    The address is (host, port), or (host, port, options); with options the server runs beside other
    code of the worker.  Options: ``clients`` and ``listen_s`` for ``Server``, ``key`` in hex, and
    ``certificate`` as PEM, or True to make one here.  Without these it takes what the coordinator
    put before this source.  Sends the (host, port) that it is bound to.
    """
    request = channel.receive()
    options = dict(request[2:] and request[2])
    runs_beside = bool(options)
    server = _asked_server((str(request[0]), request[1]), options)
    thread = start_thread(server.run)

    def stop(_):
        # type: (object) -> None
        server.stop()
        thread.join(LAST_WORDS_S)

    server.end = channel.gateway.newchannel()  # nobody else knows it, so it ends with the gateway
    server.end.setcallback(stop, endmarker=None)
    channel.send(tuple(server.address))
    model = channel.gateway.execmodel
    while not runs_beside and thread.is_alive():
        (thread.join if model.has_main_thread else model.sleep)(TICK_S)  # so that others can run


def _asked_server(address, options):
    # type: (Tuple[str, int], Dict[str, Any]) -> Server
    given = globals().get("GIVEN", {})  # type: Dict[str, Any]
    key = options.pop("key", None) or given.get("key")
    pem = options.pop("certificate", None)
    listener = listen(address)
    try:
        if not is_loopback(listener.getsockname()):
            pem = pem or given.get("certificate")
            if pem is None:
                raise ValueError("%s is not for this machine only: TLS is needed" % (address[0],))
        options["key"] = own_key() if key is None else key_of(_as_bytes(key))
        if pem is not None:
            pem = make_certificate() if pem is True else _as_bytes(pem)
            options["certificate"] = Certificate(pem)
        return Server(listener, **options)
    except BaseException:
        listener.close()
        raise


def _as_bytes(text):
    # type: (Union[bytes, str]) -> bytes
    return text if isinstance(text, bytes) else text.encode("ascii")


def make_server(args=None, is_alone=False):
    # type: (Optional[List[str]], bool) -> Optional[Server]
    """Return the server that the command line asks for; None if it asks for something else.

    Raises SystemExit with a sentence if there can't be one.
    """
    parser = _make_parser()
    options = parser.parse_args(args)
    if options.new_key:
        try:
            make_key(options.new_key)
        except EnvironmentError as exc:
            sys.exit("can't make a key: %s" % (exc,))
        return None
    if options.no_authentication and options.key:
        parser.error("--no-authentication asks for no --key")
    if options.cert_key and not options.cert:
        parser.error("--cert-key is for --cert")
    try:
        return _server_for(options, is_alone)
    except (ValueError, EnvironmentError) as exc:
        sys.exit("can't listen at %s: %s" % (options.address, exc))


def _make_parser():
    # type: () -> argparse.ArgumentParser
    import argparse  # late: programs that only use parts of this file don't need it

    parser = argparse.ArgumentParser(
        description="Start a Python interpreter for each client that connects and has the key.",
        epilog="WHOEVER HAS THE KEY CAN RUN CODE as the user that you are now; with "
        "--no-authentication, WHOEVER CAN CONNECT CAN RUN CODE.",
    )
    add = parser.add_argument
    explained = (
        "[host]:port or unix:/path; default %(default)s.  Without a host only this machine can "
        "connect, 0.0.0.0 or [::] is all networks; port 0 takes a free one and prints it"
    )
    add("address", nargs="?", default=":8888", help=explained)
    key = "the key of clients; ~/.execnet/key is made where none is named"
    add("--key", metavar="FILE", help=key)
    add("--new-key", metavar="FILE", help="write a new key into a file, and end")
    add("--no-authentication", action="store_true", help="let everybody in, and greet nobody")
    add("--tls", action="store_true", help="encrypt; needed beyond this machine")
    add("--cert", metavar="FILE", help="the certificate for --tls; the program openssl makes one")
    add("--cert-key", metavar="FILE", help="its private key, if it is not in there")
    return parser


def _server_for(options, is_alone):
    # type: (Any, bool) -> Server
    address = parse_address(options.address)
    key, certificate = None, None  # type: Optional[bytes], Optional[Certificate]
    wants_tls = options.tls or options.cert
    if not isinstance(address, tuple):
        if options.key or wants_tls:
            raise ValueError("a Unix socket is for its owner alone, and needs neither key nor TLS")
    elif not options.no_authentication:
        key = read_key(options.key) if options.key else own_key()
    listener = listen(address)
    try:
        bound = listener.getsockname()
        if not wants_tls and not options.no_authentication and not is_loopback(bound):
            raise ValueError(
                "others can connect there: --tls encrypts what travels. --no-authentication lets "
                "everybody in who can connect"
            )
        if wants_tls:
            certificate = Certificate(_certificate_for(options))
        server = Server(listener, key=key, certificate=certificate, is_alone=is_alone)
    except BaseException:
        listener.close()
        raise
    server.notes = _explained(options, server)
    return server


def _certificate_for(options):
    # type: (Any) -> bytes
    if not options.cert:
        return make_certificate()
    pem = b""
    for path in [options.cert] + ([options.cert_key] if options.cert_key else []):
        with open(path, "rb") as file:
            pem += file.read() + b"\n"
    return pem


def _explained(options, server):
    # type: (Any, Server) -> List[str]
    lines = []
    if server.key is not None:
        lines.append("clients need the key in %s" % (options.key or default_key()))
    elif isinstance(server.address, tuple):
        lines.append("WHOEVER CAN CONNECT CAN RUN CODE")
    if server.certificate is not None:
        fingerprint = server.certificate.fingerprint.decode("ascii")
        lines.append("fingerprint=%s is its certificate" % fingerprint)
    return lines


def is_ignored(number):
    # type: (int) -> bool
    """Whether a signal is ignored, as ``nohup`` has it: of that PyPy knows nothing."""
    handler = signal.getsignal(number)
    if handler != signal.SIG_DFL or not hasattr(sys, "pypy_version_info"):
        return handler == signal.SIG_IGN
    try:
        with open("/proc/self/status") as lines:
            (mask,) = [line.split()[1] for line in lines if line.startswith("SigIgn:")]
    except (EnvironmentError, ValueError):  # another system than Linux
        return False
    return bool(int(mask, 16) >> (number - 1) & 1)


def main(args=None):
    # type: (Optional[List[str]]) -> None
    """Serve at the address that the command line gives until a signal comes."""
    server = make_server(args, is_alone=True)
    if server is None:
        return
    serving = server
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)):
        if not is_ignored(number):
            signal.signal(number, lambda signum, frame: serving.stop())
    for line in ["listening on %s" % format_address(server.address)] + server.notes:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__channelexec__":
    serve_channel(channel)  # type: ignore[name-defined]  # noqa: F821 - the worker puts it there
elif __name__ == "__main__":
    main()
