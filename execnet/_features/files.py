"""Files over channels: ``Channel.makefile``."""

from __future__ import annotations

from ..gateway_base import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel


class ChannelFile(object):
    """A file over a channel; closing it closes the channel if ``proxyclose`` is true."""

    def __init__(self, channel: Channel, proxyclose: bool = True) -> None:
        self.channel = channel
        self._proxyclose = proxyclose

    def isatty(self) -> bool:
        """A channel is no terminal."""
        return False

    def close(self) -> None:
        """Close the channel, if that was asked for."""
        if self._proxyclose:
            self.channel.close()

    def __repr__(self) -> str:
        state = "closed" if self.channel.isclosed() else "open"
        return "<%s %s on channel %d>" % (self.__class__.__name__, state, self.channel.id)


class ChannelFileWrite(ChannelFile):
    """Sends what is written to it, an item per call."""

    def write(self, out: object) -> None:
        """Send ``out`` as one item."""
        self.channel.send(out)

    def flush(self) -> None:
        """Nothing is held back."""


class ChannelFileRead(ChannelFile):
    """Reads the items of a channel, all text or all bytes, as one text; "" at its end."""

    def __init__(self, channel: Channel, proxyclose: bool = True) -> None:
        super(ChannelFileRead, self).__init__(channel, proxyclose)
        self._buffer: Any = None

    def _fill(self) -> bool:
        try:
            item = self.channel.receive()
        except EOFError:
            return False
        if not isinstance(item, (bytes, type(u""))):  # Python 2 has both
            raise LoadError("a file over %r got no text: %.60r" % (self.channel, item))
        self._buffer = item if self._buffer is None else self._buffer + item
        return True

    def _take(self, size: int) -> Any:
        if self._buffer is None:
            return ""
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def read(self, n: int) -> Any:
        """Return ``n`` characters, fewer only at the end."""
        while len(self._buffer or "") < n and self._fill():
            pass
        return self._take(n)

    def readline(self) -> Any:
        """Return the next line with its end, or what is left when there is none."""
        searched = 0
        while True:
            buffer = self._buffer
            if buffer:
                newline = "\n" if isinstance(buffer, type("")) else b"\n"
                end = buffer.find(newline, searched)
                if end >= 0:
                    return self._take(end + 1)
                searched = len(buffer)
            if not self._fill():
                return self._take(searched)


KINDS = {"w": ChannelFileWrite, "r": ChannelFileRead}
