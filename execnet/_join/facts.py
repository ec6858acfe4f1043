"""What a joiner says about itself, checked before it is used, and how it is turned away.

Start at ``Facts``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT_CHARS = 100
NUMBER_MAX = 1 << 31
_TEXTS = "host", "launcher", "job"
_NUMBERS = "pid", "rank", "size"


class Refused(Exception):
    """A joiner is turned away; ``word`` begins the line that it is sent."""

    def __init__(self, text: str, word: str = "error") -> None:
        super().__init__(text)
        self.word = word


class Facts:
    """Where a joiner runs, and which one of many it is; ValueError for malformed facts.

    id: the random one that it chose.  line: an object in JSON.
    """

    def __init__(self, id: str, line: bytes) -> None:
        import json

        try:
            said = json.loads(line.decode("ascii"))
        except (ValueError, RecursionError) as exc:
            raise ValueError("what it says about itself is not JSON") from exc
        if type(said) is not dict:
            raise ValueError("what it says about itself is not an object")
        self.id = id
        self._values: dict[str, Any] = {"join_id": id}
        for name in _TEXTS:
            self._values[name] = _checked_text(name, said.get(name))
        for name in _NUMBERS:
            self._values[name] = _checked_number(name, said.get(name))
        # Of its end of the connection; None if there is none that others could dial.
        self.address: str | None = None
        text = _checked_text("address", said.get("address"))
        if text is not None:
            self.address = numeric(text)
        # Distinguishes jobs of one launcher; None if that is not known.
        self.place: tuple[str, str, int] | None = None
        if self._values["job"] and self._values["launcher"] and self._values["rank"] is not None:
            self.place = self._values["launcher"], self._values["job"], self._values["rank"]

    def shown(self) -> dict[str, Any]:
        """Return the values for ``_rinfo``, None for unknown ones; the hello has the pid."""
        return {name: value for name, value in self._values.items() if name != "pid"}

    @property
    def host(self) -> str | None:
        """The name of its machine, as far as that is known."""
        host: str | None = self._values["host"]
        return host

    def __str__(self) -> str:
        if self.place is None:
            return f"a joiner on {self._values['host'] or 'some host'}"
        launcher, job, rank = self.place
        return f"rank {rank} of {launcher} job {job}"


def _checked_text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if type(value) is not str or len(value) > TEXT_CHARS:
        raise ValueError(f"its {name} is not a short text")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"its {name} is not printable")
    return value


def numeric(text: str) -> str | None:
    """Return the address of a machine without a mapping; None if it means something there alone.

    Raises ValueError if it is none.
    """
    import ipaddress

    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("its address is none") from None
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return None if address.is_unspecified or address.is_multicast else str(address)


def _checked_number(name: str, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < NUMBER_MAX:
        raise ValueError(f"its {name} is not a number")
    return value
