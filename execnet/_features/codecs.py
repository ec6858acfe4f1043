"""Codecs: items of more types than plain builtins, on channels that have a codec.

A value of a registered type travels as ``(MARK, name, plain item)``, inside an otherwise ordinary
item; a tuple that happens to begin with the mark travels as ``(MARK, "", its parts)``.  The
coordinator describes its codec to the worker, which builds its own from that: there, a type is
imported when its first value arrives.  A coordinator imports nothing that a worker names.
Start at ``Codec``.
"""

from __future__ import annotations

import sys

from ..gateway_base import (
    _CONTAINERS,
    _SAVERS,
    ENDMARKER,
    NO_ENDMARKER_WANTED,
    PY2,
    Channel,
    DumpError,
    LoadError,
    Message,
    _import,
    _save_channel,
    load_part,
    loads_internal,
    wake_timed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime, time, timedelta
    from typing import Any

    from ..gateway_base import BaseGateway

    Convert = Callable[[Any], Any]  # of a value of some type, or to one

packed = load_part("_features.packed")
_TEXT = type(u"")
MARK = u"\0codec"
TEXT_MAX = 10000  # characters of a number written in decimal


class Codec(object):
    """Turns values of some types into plain items, and back.

    sets: names of ready-made sets: "standard", "numpy" or "pickle".  A codec may be used by many
    channels; register types before that, in one thread.
    """

    def __init__(self, sets: Iterable[str] = ()) -> None:
        self.sets = tuple(sets)
        self.wants_bytearrays = "numpy" in self.sets  # for large items, to make arrays of
        self.protocol = 5  # of pickles
        self._names: dict[type, str] = {}
        self._to_item: dict[str, Convert] = {}
        self._from_item: dict[str, Convert] = {"plain": lambda item: item}
        self._described: dict[str, tuple[str, str, str]] = {}  # by name: what a worker imports
        self._expected: dict[str, tuple[str, str, str]] = {}  # the same, as a coordinator told it
        for name in self.sets:
            if name not in _SETS:
                raise ValueError("there is no codec %r, only %s" % (name, ", ".join(sorted(_SETS))))
            _SETS[name](self)

    def __repr__(self) -> str:
        names = list(self.sets) + sorted(set(self._described) | set(self._expected))
        return "<Codec %s>" % (", ".join(names) or "of nothing")

    def __or__(self, other: object) -> Codec:
        """Return a codec with the types of both."""
        if not isinstance(other, Codec):
            return NotImplemented
        both = Codec(self.sets + tuple(name for name in other.sets if name not in self.sets))
        for codec in (self, other):
            for mine, theirs in zip(both._tables(), codec._tables()):
                mine.update(theirs)
        return both

    def _tables(self) -> list[dict[Any, Any]]:
        return [self._names, self._to_item, self._from_item, self._described, self._expected]

    def register(
        self,
        type: type,
        to_item: Convert | None = None,
        from_item: Convert | None = None,
        name: str | None = None,
    ) -> Codec:
        """Register a type, so that values of exactly this type can be sent; return the codec.

        to_item: returns a plain item for a value; the item may contain values of registered types.
        from_item: returns a value for such an item from the other side.  Both may be left out for
        a dataclass, an enum or a named tuple.  name: the name of the type on both sides; by
        default its module and qualified name.  A worker imports type and functions by their names;
        if it can't, code there has to register the type under the same name.
        Raises TypeError for a type that needs functions, or if only one is given.
        """
        key = name or _name_of(type)
        words = _name_of(type), "", ""
        if to_item is None and from_item is None:
            to_item, from_item = _functions_for(type)
        elif to_item is None or from_item is None:
            raise TypeError("to register %r takes two functions, or none" % (type,))
        else:
            words = _name_of(type), _name_of(to_item), _name_of(from_item)
        self._names[type] = key
        self._to_item[key], self._from_item[key] = to_item, from_item
        self._described[key] = words
        return self

    def _add(self, type: type, name: str, to_item: Convert, from_item: Convert) -> None:
        """Register a type of a ready-made set, which the other side has as well."""
        self._names[type] = name
        self._to_item[name], self._from_item[name] = to_item, from_item

    def describe(self) -> tuple[object, ...]:
        """Return a plain item from which ``described`` builds a codec on the other side."""
        return self.sets, self.protocol, list(self._described.items())

    def for_python(self, version_info: Sequence[int]) -> Codec:
        """Return the codec to use with a worker of this version."""
        protocol = 2 if version_info[0] < 3 else 4 if tuple(version_info[:2]) < (3, 8) else 5
        if protocol == self.protocol or "pickle" not in self.sets:
            return self
        codec = self | Codec()
        codec.protocol = protocol
        return codec

    # to a plain item

    def dump(self, item: object, raws: list[memoryview] | None = None) -> object:
        """Return an item without registered types.

        raws: gets the bytes of large arrays, which are to be sent after it: ``_features.packed``.
        Raises ``DumpError`` if an item is nested too deeply.  Values that are neither plain nor of
        a registered type stay, for the serializer to refuse.
        """
        if "pickle" in self.sets:
            return _pickled(item, self.protocol)
        if type(item) is bytes and item[: len(packed.MAGIC)] == packed.MAGIC:
            return (MARK, "plain", item)
        try:
            return packed.with_raws(raws, self._plain, item)
        except RuntimeError:  # RecursionError is one
            raise DumpError("item: nested too deeply, or it contains itself")

    def _plain(self, item: Any) -> Any:
        kind = type(item)
        if kind not in _CONTAINERS:
            name = self._names.get(kind) or (kind not in _SAVERS and self._name_for(kind))
            return (MARK, _TEXT(name), self._plain(self._item(name, item))) if name else item
        if kind is dict:
            if set(map(type, item)) | set(map(type, item.values())) <= _ATOMS:
                return item
            return {self._plain(key): self._plain(item[key]) for key in item}
        if set(map(type, item)) <= _ATOMS and not _is_marked(item):
            return item
        parts = kind([self._plain(part) for part in item])
        return (MARK, "", parts) if _is_marked(item) else parts

    def _item(self, name: str, value: object) -> object:
        try:
            return self._to_item[name](value)
        except DumpError:
            raise
        except Exception as exc:
            if isinstance(exc, RuntimeError) and "recursion" in str(exc):
                raise  # the item is to blame
            raise DumpError("no item of %s: %s: %s" % (name, type(exc).__name__, exc))

    def _name_for(self, kind: type) -> str | None:
        """Return the name of a type at its first use, None if it has none."""
        if "numpy" in self.sets and kind.__module__ == "numpy":
            packed.register_numpy(self)
        elif any(words[0] == _name_of(kind) for words in self._expected.values()):
            names = [name for name in self._expected if self._expected[name][0] == _name_of(kind)]
            self._import(names[0])
        elif "standard" in self.sets and _is_of_standard_kind(kind):
            raise DumpError("%r has to be registered: codec.register(%s)" % (kind, kind.__name__))
        return self._names.get(kind)

    # from one

    def load(self, item: Any, channel: Channel | None = None) -> Any:
        """Return the item that the other side's ``dump`` got; ``LoadError`` if there is none.

        channel: the one that it came over.
        """
        try:
            if type(item) is bytearray or type(item) is bytes:
                if self.wants_bytearrays and item[: len(packed.MAGIC)] == packed.MAGIC:
                    return packed.unpacked(item, channel, self._value)
                return bytes(item)
            return self._value(item)
        except LoadError:
            raise
        except Exception as exc:
            raise LoadError("%s: %s" % (type(exc).__name__, exc))

    def _value(self, item: Any) -> Any:
        kind = type(item)
        if kind not in _CONTAINERS:
            return item
        if kind is dict:
            if set(map(type, item)) | set(map(type, item.values())) <= _ATOMS:
                return item
            return {self._value(key): self._value(item[key]) for key in item}
        if set(map(type, item)) <= _ATOMS and not _is_marked(item):
            return item
        if not _is_marked(item):
            return kind([self._value(part) for part in item])
        _, name, inner = item
        if name == "" and type(inner) is tuple:
            return tuple([self._value(part) for part in inner])
        if name not in self._from_item:
            self._import(name)
        try:
            return self._from_item[name](self._value(inner))
        except LoadError:
            raise
        except Exception as exc:
            raise LoadError("no value of %s: %s: %s" % (name, type(exc).__name__, exc))

    def _import(self, name: str) -> None:
        """Import what the coordinator registered under a name."""
        if name == "numpy.ndarray" and "numpy" in self.sets:
            packed.register_numpy(self)
            return
        advice = "register it on this side, too: channel.codec.register(..., name=%r)" % (name,)
        if name not in self._expected:
            raise LoadError("nothing is registered as %.80r here; %s" % (name, advice))
        try:
            kind, to_item, from_item = [_found(word) for word in self._expected[name]]
            if not isinstance(kind, type):
                raise ImportError("%r is not a type" % (kind,))
            self.register(kind, to_item, from_item, name)
        except (ImportError, TypeError) as exc:
            words = name, exc, advice
            raise LoadError("can't import here what is registered as %s: %s; %s" % words)


def described(description: Any) -> Codec:
    """Return a codec that matches the coordinator's description."""
    sets, protocol, entries = description
    codec = Codec(sets)
    codec.protocol = protocol
    codec._expected.update(entries)
    return codec


def _is_marked(item: object) -> bool:
    if type(item) is not tuple or len(item) != 3:
        return False
    return isinstance(item[0], (str, _TEXT)) and item[0] == MARK


def _name_of(what: object) -> str:
    name = getattr(what, "__qualname__", None) or getattr(what, "__name__", "")
    return "%s:%s" % (getattr(what, "__module__", None), name)


def _found(name: str) -> Any:
    """Return the object with this module and qualified name; None for no name."""
    if not name:
        return None
    module, _, path = name.partition(":")
    if module == "__main__" or "<" in path:
        raise ImportError("%s is not in an importable module" % name)
    __import__(module)
    found: Any = sys.modules[module]
    try:
        for word in path.split("."):
            found = getattr(found, word)
    except AttributeError as exc:
        raise ImportError(str(exc))
    return found


_ATOMS = frozenset(_SAVERS) - frozenset(_CONTAINERS)


# ---------------------------------------------------------------- channels


class CodecChannel(Channel):
    """A channel that has a codec; channels without one pay nothing for this."""

    _codec: Codec | None
    _untaken: list[object]  # what arrived at the same time as an interrupt

    def send(self, item: object) -> None:
        """Send an item like ``Channel.send``, also with values of the codec's types."""
        codec = self._codec
        raws: list[memoryview] = []
        plain = codec.dump(item, None if PY2 else raws) if codec else item
        if raws:
            load_part("_features.buffers").send_pieces(self, packed.pieces_of(self, plain, raws))
        else:
            Channel.send(self, plain)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next item like ``Channel.receive``, with values of the codec's types.

        Also raises ``LoadError`` for an item that the codec can't turn into values.
        """
        taken: list[Any] = []
        try:
            if self._untaken:
                taken.append(self._untaken.pop(0))
            else:
                taken += map(Channel.receive, (self,), (timeout,))
            codec = self._codec  # it may have been taken away meanwhile
            if codec is None:
                return bytes(taken[0]) if type(taken[0]) is bytearray else taken[0]
            return codec.load(taken[0], self)
        except Exception:
            raise
        except:
            self._untaken += taken
            raise

    def setcallback(
        self, callback: Callable[[Any], object], endmarker: object = NO_ENDMARKER_WANTED
    ) -> None:
        """Call ``callback(item)`` for every item, like ``Channel.setcallback``."""
        codec = self._codec

        def loading(item: object) -> None:
            callback(item if item is endmarker or codec is None else codec.load(item, self))

        while self._untaken:
            loading(self._untaken.pop(0))
        Channel.setcallback(self, loading, endmarker)


_SAVERS[CodecChannel] = _save_channel


def use(channel: Channel, codec: Any) -> None:
    """Give a channel a codec; a coordinator tells its worker.

    Raises TypeError for an object that is not a codec, OSError if the channel has a callback.
    """
    if codec is not None:
        check_codec(codec)
    if channel._items is None:
        raise OSError("%r has a callback already: set its codec first" % (channel,))
    announce = getattr(channel.gateway, "announce_codec", None)
    if announce is not None:
        codec = announce(channel, codec)
    _set(channel, codec)


def check_codec(codec: object) -> None:
    """Raise TypeError for an object that is not a codec."""
    if not isinstance(codec, Codec):
        raise TypeError("expected a codec, such as execnet.codecs.standard, not %r" % (codec,))


def _set(channel: object, codec: Codec | None) -> None:
    if not isinstance(channel, Channel):
        return  # its callback already has the items
    for name, value in ("_codec", codec), ("_untaken", getattr(channel, "_untaken", [])):
        setattr(channel, name, value)
    kind = Channel if codec is None else CodecChannel
    if type(channel) in (Channel, CodecChannel) and type(channel) is not kind:
        channel.__class__ = kind  # a channel of an event loop looks by itself
        _renew_inbox(channel)
    if codec is not None and codec.wants_bytearrays:
        load_part("_features.buffers").buffers_of(channel._factory)


def _renew_inbox(channel: Channel) -> None:
    """Give a channel another queue, for threads that wait for the next item to use the codec."""
    with channel._lock:
        old: Any = channel._items
        fresh = channel.gateway.execmodel.inbox()
        if old is None or hasattr(old, "note_read") != hasattr(old, "over"):
            return  # it has a callback; or buffers, which no codec is for
        inner = old._items if hasattr(old, "over") else old
        try:
            while not inner.empty():
                item = inner.get(False)
                fresh.put(bytes(item) if type(item) is bytearray else item)
        except channel.gateway.execmodel.Empty:  # a thread that receives was faster
            pass
        channel._set_inbox(fresh if inner is old else old.over(fresh))
        inner.put(ENDMARKER)  # last: whoever wakes up looks whether there is another queue
        wake_timed(inner)


def on_codec(message: Message, gateway: BaseGateway) -> None:
    """Act on a CODEC frame in a worker: give a channel a codec, even before it exists."""
    description = loads_internal(message.data)
    codec = None if description is None else described(description)
    gateway._channelfactory.prepare(message.channelid, lambda holder: _set(holder, codec))


# ---------------------------------------------------------------- dataclasses, enums, named tuples


def _is_of_standard_kind(kind: type) -> bool:
    try:
        _functions_for(kind)
    except TypeError:
        return False
    return True


def _functions_for(kind: Any) -> tuple[Any, Any]:
    """Return functions from values of a type to items and back; TypeError if none are known."""
    if hasattr(kind, "__dataclass_fields__"):
        return _fields_of, lambda item: _of_fields(kind, item)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple, kind._make  # type: ignore[attr-defined]
    metaclass = getattr(sys.modules.get("enum"), "EnumMeta", ())
    if isinstance(kind, metaclass):
        return _name_or_value, lambda item: kind[item[0]] if item[0] else kind(item[1])
    raise TypeError(
        "%r is not a dataclass, enum or named tuple: register it with two functions, "
        "one from a value to an item and one from an item to a value" % (kind,)
    )


def _fields_of(value: Any) -> tuple[object, ...]:
    fields = type(value).__dataclass_fields__
    return tuple([(name, getattr(value, name)) for name in fields if hasattr(value, name)])


def _of_fields(kind: Any, item: Iterable[tuple[str, object]]) -> object:
    fields = kind.__dataclass_fields__
    given: dict[str, object] = {}
    rest: dict[str, object] = {}
    for name, value in item:
        if name not in fields:
            raise LoadError("%s has no field %.80r" % (kind.__name__, name))
        (given if fields[name].init else rest)[str(name)] = value
    made = kind(**given)
    for name, value in rest.items():
        object.__setattr__(made, name, value)
    return made


def _name_or_value(member: Any) -> tuple[object, object]:
    kind = type(member)  # a combination of flags has no name of its own
    if member.name in kind.__members__:
        return member.name, None
    return None, member.value


# ---------------------------------------------------------------- the ready sets


def _add_standard(codec: Codec) -> None:
    decimal, fractions, uuid = map(_import, ("decimal", "fractions", "uuid"))
    _add_times(codec)
    codec._add(decimal.Decimal, "decimal", str, lambda text: decimal.Decimal(_short(text)))
    codec._add(
        fractions.Fraction,
        "fraction",
        lambda f: (f.numerator, f.denominator),
        lambda item: fractions.Fraction(*item),
    )
    codec._add(uuid.UUID, "uuid", lambda u: u.int, lambda number: uuid.UUID(int=number))
    _add_paths(codec)


def _add_times(codec: Codec) -> None:
    datetime = _import("datetime")
    zone_of, zoned = _zone_of, _zoned
    codec._add(
        datetime.date, "date", lambda d: (d.year, d.month, d.day), lambda item: datetime.date(*item)
    )
    codec._add(
        datetime.time,
        "time",
        lambda t: ((t.hour, t.minute, t.second, t.microsecond), zone_of(t), getattr(t, "fold", 0)),
        lambda item: zoned(datetime.time, *item),
    )
    codec._add(
        datetime.datetime,
        "datetime",
        lambda t: (
            (t.year, t.month, t.day, t.hour, t.minute, t.second, t.microsecond),
            zone_of(t),
            getattr(t, "fold", 0),
        ),
        lambda item: zoned(datetime.datetime, *item),
    )
    codec._add(
        datetime.timedelta,
        "timedelta",
        lambda d: (d.days, d.seconds, d.microseconds),
        lambda item: datetime.timedelta(*item),
    )
    if not PY2:
        codec._add(
            datetime.timezone, "timezone", lambda z: _seconds(z.utcoffset(None)), _fixed_zone
        )


def _add_paths(codec: Codec) -> None:
    try:
        pathlib = _import("pathlib")
    except ImportError:  # on Python 2, a path is its text
        for name in ("path", "posixpath", "windowspath"):
            codec._from_item[name] = lambda text: text
        return
    codec._add(type(pathlib.Path()), "path", str, pathlib.Path)
    codec._add(pathlib.PurePosixPath, "posixpath", str, pathlib.PurePosixPath)
    codec._add(pathlib.PureWindowsPath, "windowspath", str, pathlib.PureWindowsPath)


def _seconds(offset: timedelta | None) -> float | None:
    return None if offset is None else offset.total_seconds()


def _zone_of(moment: time | datetime) -> float | None:
    """Return the offset of a time from UTC in seconds; None if it is not known."""
    return _seconds(moment.utcoffset())


def _fixed_zone(seconds: float) -> object:
    datetime = _import("datetime")
    if PY2:
        raise LoadError("Python 2 has no time zones")
    return datetime.timezone(datetime.timedelta(seconds=seconds))


def _zoned(kind: Any, numbers: Sequence[int], seconds: float | None, fold: int) -> object:
    zone = None if seconds is None else _fixed_zone(seconds)
    made = kind(*numbers, tzinfo=zone)
    return made.replace(fold=fold) if fold else made


def _short(text: str) -> str:
    if len(text) > TEXT_MAX:
        raise LoadError("a number of %d characters" % len(text))
    return str(text)


def _add_numpy(codec: Codec) -> None:
    """Add nothing yet: numpy is imported with the first array, or never."""


def _add_pickle(codec: Codec) -> None:
    codec._from_item["pickle"] = _unpickled


def _pickled(item: object, protocol: int) -> object:
    pickle = _import("pickle")
    protocol = min(protocol, pickle.HIGHEST_PROTOCOL)
    buffers: list[Any] = []
    more = {"buffer_callback": buffers.append} if protocol > 4 else {}
    try:
        data = pickle.dumps(item, protocol, **more)
    except Exception as exc:
        raise DumpError("item: can't be pickled: %s: %s" % (type(exc).__name__, exc))
    return MARK, "pickle", (data, [bytes(buffer.raw()) for buffer in buffers])


def _unpickled(item: Any) -> object:
    data, buffers = packed.octets(item[0]), item[1]
    pickle = _import("pickle")
    # From bytearrays, so that arrays made of them are writable.
    return pickle.loads(data, buffers=map(bytearray, buffers)) if buffers else pickle.loads(data)


_SETS: dict[str, Callable[[Codec], None]] = {
    "standard": _add_standard,
    "numpy": _add_numpy,
    "pickle": _add_pickle,
}
