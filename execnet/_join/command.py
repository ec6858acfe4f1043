"""The command that joins: one line for a bare Python.

It connects, checks the certificate, proves that it has the key, and runs the code that the
coordinator then sends, which is ``far``.  Start at ``Ticket``.
"""

from __future__ import annotations

from ..script.socketserver import format_address, parse_address

TYPE_CHECKING = False

KEY_VARIABLE = "EXECNET_KEY"
COMMAND_BYTES = 1500  # where a batch system or a manifest puts it
PATIENCE_S = 60  # how long a joiner tries to connect
ANSWER_S = 99  # for each answer; the coordinator may first ask another worker whether it is alive

# The line has to be short: b, h modules; d address; k key, t when it gives up, s connection, n the
# coordinator's nonce, c context, p what the certificate's hash is, i the joiner's id and nonce, f
# what it reads from, a the answer.  A try that the coordinator ends, as it does in a crowd, has a
# successor, with a new id.  Python 2.7 has neither PROTOCOL_TLS_CLIENT nor "raise from".
_FIRST = """\
import binascii as b,hashlib as h,hmac,os,socket,ssl,sys,time
d="{host}",{port}
try:k=b.unhexlify(({key}).strip())
except Exception as x:sys.exit("execnet join: no key: %s"%x)
t=time.time()+{patience}
while 1:
 try:
  s=socket.create_connection(d,9)
  s.settimeout({answer})
  n=s.makefile("rb",0).readline(99).decode().split()[2]
  c=ssl.SSLContext(getattr(ssl,"PROTOCOL_TLS_CLIENT",2))
  c.check_hostname=c.verify_mode=0
  s=c.wrap_socket(s)
  p=h.sha256(s.getpeercert(1)).hexdigest()
  if p!="{pin}":sys.exit("execnet join: not the coordinator: its certificate is "+p)
  i=b.hexlify(os.urandom(32)).decode()
  v="execnet-auth-1 "
  m=v+" ".join(["client","tls",n,"join",i,p])
  s.sendall((v+" ".join([i,p,hmac.new(k,m.encode(),h.sha256).hexdigest()])+"\\n").encode())
  f=s.makefile("rb")
  a=f.readline().decode().split(" ",2)
  a[2]
  break
 except(EnvironmentError,IndexError)as x:
  if time.time()>t:sys.exit("execnet join: cannot connect: %s"%x)
  time.sleep(ord(os.urandom(1))/99.)
if a[1]!="ok":
 sys.stderr.write("execnet join: "+a[2])
 sys.exit(a[1]!="late")
del k
exec(f.read(int(a[2])))
"""


class Ticket:
    """What a joiner has to know apart from the key: the coordinator's address and certificate.

    address: host and port.  fingerprint: the SHA-256 of the certificate, in hex.
    """

    def __init__(self, address: tuple[str, int], fingerprint: str) -> None:
        self.address = address
        self.fingerprint = fingerprint

    def __str__(self) -> str:
        return f"{format_address(self.address)}//fingerprint={self.fingerprint}"

    def through(self, via: str | None) -> Ticket:
        """Return the ticket for joiners that dial something that leads here: "host[:port]"."""
        if via is None:
            return self
        host, colon, port = via.rpartition(":")
        has_port = bool(colon) and port.isdigit() and not (":" in host and host[-1] != "]")
        place = parse_address(via if has_port else f"{_bracketed(via)}:{self.address[1]}")
        if isinstance(place, str) or not place[1]:
            raise ValueError(f"{via!r} is not host or host:port")
        return Ticket(place, self.fingerprint)

    def code(self, key: str) -> str:
        """Return the first code of a joiner; ``key`` is an expression that gives it in hex."""
        host, port = self.address
        if not all(char.isalnum() or char in ".-:%_" for char in host) or not host.isascii():
            raise ValueError(f"{host!r} is not the name of a host")
        return _FIRST.format(
            key=key,
            host=host,
            port=port,
            pin=self.fingerprint,
            patience=PATIENCE_S,
            answer=ANSWER_S,
        )

    def command(self, key: str | None, default_file: str | None, python: str) -> str:
        """Return the command, in the syntax of a shell.

        key: "-" for stdin, "env:NAME" for a variable, else a file; None for ``KEY_VARIABLE``,
        and the default file where that is not set.  Raises ValueError if it would be too long.
        """
        import shlex

        code = self.code(_expression(key, default_file))
        quoted = code.rstrip("\n").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        command = f"{python} -c " + shlex.quote(f'exec("{quoted}")')
        if len(command.encode()) > COMMAND_BYTES:
            raise ValueError(
                f"the command would have {len(command.encode())} bytes, more than "
                f"{COMMAND_BYTES}: use shorter names for the host, the key or the interpreter"
            )
        return command


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def ticket_of(text: str) -> Ticket:
    """Return the ticket for a text from ``Group.listen``; ValueError for any other text."""
    import re

    place, _, rest = text.partition("//")
    found = re.fullmatch("fingerprint=([0-9a-f]{64})", rest)
    if found is None:
        raise ValueError(
            f"{text!r} names no certificate, by which the coordinator is known: give what "
            "listen() returned, HOST:PORT//fingerprint=..."
        )
    address = parse_address(place)
    if isinstance(address, str):
        raise ValueError(f"{place!r} is not host:port")
    return Ticket(address, found[1])


def _expression(key: str | None, default_file: str | None) -> str:
    """Return an expression for the key's text, which is then nowhere else in the process."""
    if key == "-":
        return "sys.stdin.readline()"
    if key is not None and key.startswith("env:"):
        return f"os.environ.pop({_quoted(key[4:])})"
    if key is not None:
        return _reading(key)
    variable = _quoted(KEY_VARIABLE)
    if default_file is None:
        return f"os.environ.pop({variable})"
    return f'os.environ.pop({variable},"")or {_reading(default_file)}'


def _reading(path: str) -> str:
    if path.startswith("~"):
        return f"open(os.path.expanduser({_quoted(path)})).read()"
    return f"open({_quoted(path)}).read()"


def _quoted(text: str) -> str:
    """Return a literal in double quotes, which means the same to Python 2."""
    if not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
        raise ValueError(f"a command can't contain {text!r}: use printable ASCII without quotes")
    return f'"{text}"'
