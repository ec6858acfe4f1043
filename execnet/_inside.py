"""What other modules of the package ask of a coordinator's gateway.

These names have no underscore, but programs should not use them: ``dir()`` and the reference leave
them out.  Start at ``Inside``.
"""

from __future__ import annotations

from .gateway_base import BaseGateway, GatewayState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._endpoint import Endpoint
    from ._ends.handshake import Handshake
    from ._specs import Settings
    from .gateway_base import Channel, ChannelFactory, FrameWriter, StrConfig


class Inside(BaseGateway):
    """The parts and the state of a gateway, to look at; any thread may."""

    _io: Endpoint
    handshake: Handshake
    settings: Settings
    known_parts: frozenset[str] = frozenset()  # modules of ours that its worker has

    waits_in_loop = False  # as those of ``execnet.aio``

    def refuse_blocking(self) -> None:
        """Raise TypeError if the calling thread must not wait for this gateway."""

    def newchannel_as(self, strconfig: StrConfig) -> Channel:
        """Return a new channel that converts strings so, whatever the gateway is configured to."""
        channel = self.newchannel()
        channel._strconfig = strconfig
        return channel

    def send_message(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        """Send a frame; in the receiver thread, which must go on reading, without waiting."""
        self._send(msgcode, channelid, data)

    def post_message(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None:
        """Have a frame sent soon; never waits and never fails."""
        self._post(msgcode, channelid, data)

    def give_up(self, reason: str) -> None:
        """Kill a worker that does not do its part; the reason is in the error that users get."""
        self._on_silence(reason)

    @property
    def endpoint(self) -> Endpoint:
        """The worker's stream, which can also kill the worker and wait for its end."""
        return self._io

    @property
    def writer(self) -> FrameWriter:
        """What writes frames to the stream; a forked process gets another one."""
        return self._writer

    @property
    def factory(self) -> ChannelFactory:
        """The channels, and what has arrived for them."""
        return self._channelfactory

    @property
    def is_live(self) -> bool:
        """Whether the worker has said hello, and neither ended nor was asked to."""
        return self._state == GatewayState.LIVE

    @property
    def end_error(self) -> BaseException | None:
        """Why the stream ended; None while it goes on."""
        return self._error

    @property
    def receives_here(self) -> bool:
        """Whether the calling thread acts on what arrives, so that it must not wait for more."""
        return self._get_ident() == self._receiver_ident

    def imports_parts(self) -> bool:
        """Whether the worker can import our modules, because it has them where we have them."""
        return self.settings.has_source

    def has_old_python(self) -> bool:
        """Whether the worker's Python may not understand our modules as they are."""
        version: tuple[int, ...] = self.handshake.hello.get("version_info", (2, 7))
        return version[:2] < (3, 7)
