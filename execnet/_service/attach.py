"""``attach=NAME``: a gateway to a service at the other end of a login.

The command of a spec starts an interpreter that finds the service there, or starts it, and passes
bytes on: ``far_attach``.  It has all the source that it needs in its first line, except the
service's own, which it asks for when there is no service.  Start at ``first_line``.
"""

from __future__ import annotations

import binascii

from .._ship.loading import code_to_run
from .._transports.table import TRANSPORTS, interpreter_words
from ..gateway_base import _frame_of
from .near import IDLE_S, request_of, service_code, version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._specs import Settings

PART = "_service.far_attach"
OTHERS = ("_service.far_find",)
TERMINAL = ("_ends.far_terminal",)

_PACKED = """\
def unpack(packed, options):
 import binascii, zlib
 names = {{}}
 exec(zlib.decompress(binascii.a2b_base64(packed)), names)
 names["boot"](options)
unpack({packed!r}, {options!r})
"""


def first_line(settings: Settings, options: dict[str, object]) -> bytes:
    """Return the line for the interpreter over there.

    options: the arguments of ``start_worker``.
    """
    spec = settings.spec
    words = None  # then it is the interpreter that reads the line
    if spec.python and spec.python != "auto":
        words = interpreter_words(spec, TRANSPORTS["popen"], "")
    said = {
        "marker": options["marker"],
        "want": {
            "name": settings.attach,
            "port": None,
            "words": words,
            "python": spec.python.encode() if words else None,
            "idle": IDLE_S if settings.idle_s is None else settings.idle_s,
            "version": version(),
        },
        "timeout": settings.connect_timeout_s,
        "leaves_terminal": settings.type == "sudo",
        "request": _frame_of(dict(request_of(settings), options=options, goes_on=True)),
    }
    others = OTHERS + (TERMINAL if said["leaves_terminal"] else ())
    code = code_to_run(PART, others, _ships(settings))
    if _ships(settings):
        import zlib

        packed = binascii.b2a_base64(zlib.compress(code.encode("ascii"), 9), newline=False)
        code = _PACKED.format(packed=packed, options=said)
    else:
        code += f"boot({said!r})\n"
    return (ascii(code) + "\n").encode("ascii")


def _ships(settings: Settings) -> bool:
    return settings.is_over_network or bool(settings.spec.python)


class Source:
    """The service's own source, for the interpreter that asks for it."""

    rest = compiled_rest = plain_rest = None  # a service has all of it

    def __init__(self, settings: Settings) -> None:
        self._ships = _ships(settings)

    @property
    def plain_line(self) -> bytes:
        """The line with the code that starts a service."""
        return service_code(self._ships) + b"\n"
