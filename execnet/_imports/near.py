"""Answers a worker that asks for modules: with the source of allowed ones, and nothing else.

Requests arrive in the gateway's receiver thread and are answered in a thread that exists while
there are any, so that no callback, and no other worker, has to wait.  ``library`` finds and reads
modules.  Start at ``Forwarding``.
"""

from __future__ import annotations

import os
import stat
import sys
import zlib
from functools import partial

from .._ship import parts
from .._via.blobs import frame_of, kept_by
from .._via.writer import BLOB_BYTES, KEEPS, digest_of
from ..gateway_base import (
    _HEADER,
    LoadError,
    Message,
    ProtocolError,
    dumps_internal,
    loads_internal,
    new_lock,
)
from .far_finder import AHEAD
from .library import (
    Library,
    Module,
    Rules,
    check_names,
    closure,
    compiles,
    main_folder,
    names_of_folder,
    with_parents,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._inside import Inside
    from .._specs import Settings
    from .far_finder import Row

    Content = bytes | list[tuple[str, bool]]  # of a file; of a folder: names, and which are folders

PART = "_imports.far_finder"
PACKED_MAX = 1 << 20  # bytes of one answer, unless a single module is larger
FIRST_RAW = 1 << 16  # of source that is sent before the rest is found
RAW_MAX = 4 * PACKED_MAX  # of source that may shrink to that, roughly
WAITING_MAX = 1000  # requests of one worker
DATA_MAX = 64 << 20  # bytes of a file
KINDS = "module", "file", "folder", "syntax"


class Forwarding:
    """What one worker may ask for, and what it was sent.

    ``on_request`` runs in the receiver thread.  ``_lock`` guards the requests; ``_sending`` is held
    while something is sent, so that changes reach the worker in order.
    """

    def __init__(self, gateway: Inside, library: Library) -> None:
        self._gateway = gateway
        self.library = library
        self._rules = Rules()
        self._lock = new_lock()
        self._sending = gateway.execmodel.Lock()
        self._requests: list[tuple[int, tuple[str, str, str, bool]]] = []
        self._is_answering = False
        self._part_sent = False
        self._sent: dict[str, bytes] = {}  # the digests of modules
        self._listed: set[str] = set()  # packages below which the worker knows all names
        self._asked_in: set[str] = set()  # top-level packages from which it asked for something

    def allow(
        self, names: Iterable[str], allow: Iterable[str] = (), deny: Iterable[str] = ()
    ) -> None:
        """Forward more, or less; errors as for ``Gateway.forward_imports``."""
        names = check_names(names, "forward_imports", False)
        allow = check_names(allow, "allow", True)
        deny = check_names(deny, "deny", True)
        check_found(self.library, names)
        with self._sending:
            rules = self._rules
            rules.names += [name for name in names if name not in rules.names]
            rules.allow += [name for name in allow if name not in rules.allow]
            rules.deny += [name for name in deny if name not in rules.deny]
            tops = [name.partition(".")[0] for name in allow]
            reserve = ["*" if "*" in top else top for top in tops]
            self._tell("forward", self._kinds(), names, reserve)

    def send_ahead(self, name: str, has_zlib: bool) -> None:
        """Send what a module needs that the worker is going to import, if it is from here.

        It saves the round trips of asking.  No more than one answer is sent: 1 MiB.
        """
        with self._sending:
            is_ours = any(f"{name}.".startswith(f"{one}.") for one in self._rules.names)
            if not is_ours or name in self._sent or self._find(name) is None:
                return
            for payload in self._answers("module", name, "", has_zlib, one_is_enough=True):
                self._send(AHEAD, payload)
                return

    def reload(self) -> list[str]:
        """Tell the worker which modules changed since they were sent; return their names."""
        with self._sending:
            changed = []
            for name, digest in self._sent.items():
                module = self.library.find(name)
                if module is None or module.digest != digest:
                    changed.append(name)
            for name in changed:
                del self._sent[name]
            self._listed.clear()
            self._tell("reload", self._kinds(), changed)
        return sorted(changed)

    def _kinds(self) -> dict[str, int]:
        """Return the kinds of the named modules, and of the packages that they are in."""
        names = {one for name in self._rules.names for one in with_parents(name)}
        found = [self._find(name) for name in sorted(names)]
        return {one.name: one.kind for one in found if one is not None}

    def _tell(self, *told: object) -> None:
        gateway = self._gateway
        sent = [(PART, None, None)] if self._part_sent else parts.sent_parts(gateway, PART)
        gateway.send_message(Message.SOURCES, 0, dumps_internal((sent, told)))
        self._part_sent = True

    # requests

    def on_request(self, message: Message) -> None:
        """Note a request; ``ProtocolError`` for one that no honest worker makes."""
        try:
            kind, name, place, has_zlib = loads_internal(message.data, None, (True, True))
            texts = all(type(one) is str and len(one) < 1000 for one in (kind, name, place))
            if not texts or kind not in KINDS:
                raise ValueError("no such request")
        except (ValueError, TypeError, LoadError) as exc:
            raise ProtocolError(f"a worker asked for what is not a module: {exc}") from None
        with self._lock:
            if len(self._requests) >= WAITING_MAX:
                raise ProtocolError(f"a worker asked for more than {WAITING_MAX} modules at once")
            self._requests.append((message.channelid, (kind, name, place, bool(has_zlib))))
            starts, self._is_answering = not self._is_answering, True
        if starts:
            gateway = self._gateway
            try:
                gateway.execmodel.start(self._answer_all, (), f"execnet-imports-{gateway.id}")
            except RuntimeError:  # no more threads can be started
                self._is_answering = False
                number = message.channelid
                told = self._pack(("modules", ([], [], [(name, "", None, None, NO_THREAD)])), False)
                gateway.post_message(Message.SOURCES, number, told)

    def _answer_all(self) -> None:
        while True:
            with self._lock:
                if not self._requests:
                    self._is_answering = False
                    return
                number, request = self._requests.pop(0)
            try:
                with self._sending:
                    for payload in self._answers(*request):
                        self._send(number, payload)
            except OSError:  # the gateway has ended
                with self._lock:
                    self._requests.clear()

    def _send(self, number: int, payload: bytes) -> None:
        """Send an answer; a worker that others go via keeps it for them."""
        gateway = self._gateway
        if len(payload) >= BLOB_BYTES and "_via.far" in gateway.known_parts:
            digest = digest_of(payload)
            whole = KEEPS + digest + payload
            header = _HEADER.pack(Message.SOURCES, number, len(whole))
            blob = digest, len(header) + len(whole) - len(payload), len(header) + len(whole)
            frame = kept_by(gateway).keep_in(
                digest, len(payload), lambda: frame_of(gateway, header, whole, blob)
            )
            if frame is not None:
                gateway.writer.deliver(frame)
                return
        gateway.send_message(Message.SOURCES, number, payload)

    def _answers(
        self, kind: str, name: str, place: str, has_zlib: bool, one_is_enough: bool = False
    ) -> Iterable[bytes]:
        packs = has_zlib and bool(self._gateway.settings.is_over_network)
        try:
            if kind == "module":
                yield from self._answer_module(name, packs, one_is_enough)
            elif kind == "syntax":
                module = self._find(name)
                well = module is not None and compiles(module.source or b"")
                yield self._pack(("data", ("", well)), packs)
            else:
                yield self._pack(("data", self._read(kind, name, place)), packs)
        except OSError:
            raise
        except Exception as exc:  # whatever went wrong, somebody waits for an answer
            text = f"{name} could not be read at the coordinator: {exc!r}"
            if kind == "module":
                answer: tuple[str, object] = "modules", ([], [], [(name, "", None, None, text)])
            else:
                answer = "data", (text, None)
            yield self._pack(answer, packs)

    def _pack(self, answer: object, packs: bool) -> bytes:
        data = dumps_internal(answer)
        return b"z" + zlib.compress(data, 6) if packs else b"p" + data

    def _find(self, name: str) -> Module | None:
        return self.library.find(name) if self._rules.may_leave(name) else None

    # modules

    def _answer_module(self, name: str, packs: bool, one_is_enough: bool) -> Iterable[bytes]:
        """Yield answers as modules are found: what a module needs; the second time in a package,
        all of the package.

        one_is_enough: nobody waits for the rest.
        """
        names, listed = self._new_names(name)
        found: list[Module] = []
        size, limit = 0, RAW_MAX if one_is_enough else FIRST_RAW
        for module in self._wanted(name):
            if self._sent.get(module.name) != module.digest:
                found.append(module)
                size += len(module.source or b"")
                if size >= limit:
                    yield from self._send_all(names, listed, found, packs, True)
                    names, listed, found, size, limit = {}, [], [], 0, RAW_MAX
        yield from self._send_all(names, listed, found, packs, False)

    def _wanted(self, name: str) -> Iterable[Module]:
        top, seen = name.partition(".")[0], set()
        for module in closure(self.library, name, self._rules.may_leave):
            seen.add(module.name)
            yield module
        if seen and top in self._asked_in:
            for one in self.library.names_below(top):
                below = self._find(one) if one not in seen else None
                if below is not None:
                    yield below
        if seen:
            self._asked_in.add(top)

    def _send_all(
        self,
        names: dict[str, int],
        listed: list[str],
        found: list[Module],
        packs: bool,
        more: bool,
    ) -> Iterable[bytes]:
        """Yield answers with the modules found, and note that they were sent.

        more: whether others follow, which the worker should wait for.
        """
        while True:
            payload, part = self._packed(names, listed, found, packs, more)
            for module in part:
                self._sent[module.name] = module.digest
            yield payload
            self._listed.update(listed)
            names, listed, found = {}, [], found[len(part) :]
            if not found:
                return

    def _packed(
        self,
        names: dict[str, int],
        listed: list[str],
        found: list[Module],
        packs: bool,
        more: bool,
    ) -> tuple[bytes, list[Module]]:
        """Return an answer of at most ``PACKED_MAX`` bytes, and the modules in it."""
        version = tuple(self._gateway.handshake.hello["version_info"][:2])
        part = found
        while True:
            rows = [_row(module, version) for module in part]
            digests = tuple(module.digest for module in part)
            kind = "more" if more or len(part) < len(found) else "modules"
            key = (kind, tuple(names), tuple(listed), digests, min(version, (3, 7)), packs)
            answer = kind, (names, listed, rows)
            payload = self.library.packed(key, partial(self._pack, answer, packs))
            if len(payload) <= PACKED_MAX or len(part) < 2:
                return payload, part
            part = part[: len(part) // 2]

    def _new_names(self, name: str) -> tuple[dict[str, int], list[str]]:
        """Return names that the worker need not ask about any more: those of the whole package."""
        prefixes = [*self._rules.names, name.partition(".")[0]]
        for one in prefixes:
            is_new = one not in self._listed and (name == one or name.startswith(f"{one}."))
            if is_new and self._find(one) is not None:
                names = self.library.names_below(one).items()
                may_leave = self._rules.may_leave
                return {one: package for one, package in names if may_leave(one)}, [one]
        return {}, []

    # files of packages

    def _read(self, kind: str, name: str, place: str) -> tuple[str, Content | None]:
        """Return ("", content) or (why not, None)."""
        module = self._find(name)
        segments = place.split("/") if place else []
        text = f"no such file of package {name}, or none that is sent"
        if module is None or module.locations is None or module.file is None:
            return text, None
        if any(not _may_be_sent(segment) for segment in segments):
            return text, None
        dotted = ".".join([name, *segments])
        if self._rules.is_denied_file(dotted) or self._rules.is_denied_file(
            dotted.removesuffix(".py")
        ):
            return text, None
        folder = os.path.dirname(module.file)
        try:
            if not os.path.isdir(folder):
                return "", self._from_loader(module, folder, segments, kind)
            path = _below(folder, segments)
            if kind == "folder":
                return "", self._list(path, dotted)
            return "", _content(path)
        except (OSError, AttributeError) as exc:
            return f"{text}: {(isinstance(exc, OSError) and exc.strerror) or exc}", None

    def _list(self, path: str, dotted: str) -> list[tuple[str, bool]]:
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                inner = f"{dotted}.{entry.name}"
                denied = self._rules.is_denied_file(inner) or self._rules.is_denied_file(
                    inner.removesuffix(".py")
                )
                if _may_be_sent(entry.name) and not entry.is_symlink() and not denied:
                    found.append((entry.name, entry.is_dir()))
        return sorted(found)

    def _from_loader(self, module: Module, folder: str, segments: list[str], kind: str) -> Content:
        """Read from something that is not a folder, such as a zip."""
        if kind == "file":
            data = module.loader.get_data(os.path.join(folder, *segments))
            return data if isinstance(data, bytes) else bytes(data)
        entry = module.loader.get_resource_reader(module.name).files()
        for segment in segments:
            entry = entry / segment
        dotted = ".".join([module.name, *segments])
        found = [(one.name, one.is_dir()) for one in entry.iterdir()]
        return sorted(
            (name, is_folder)
            for name, is_folder in found
            if _may_be_sent(name)
            and not self._rules.is_denied_file(f"{dotted}.{name}".removesuffix(".py"))
        )


NO_THREAD = "the coordinator could not start a thread to send it"


def _row(module: Module, version: tuple[int, ...]) -> Row:
    source, refusal = module.for_python(version)
    package = "package" if module.locations is not None else ""
    return module.name, package, module.file, source, module.refusal or refusal


def _may_be_sent(segment: str) -> bool:
    """Whether a part of a path is not hidden, not bytecode, and does not lead elsewhere."""
    is_plain = bool(segment) and not segment.startswith(".") and not set(segment) & set("\\/:\0")
    return is_plain and segment.casefold() != "__pycache__" and not segment.endswith(".pyc")


def _below(folder: str, segments: list[str]) -> str:
    """Return a path below a folder; OSError if there is a link on the way."""
    for segment in segments:
        folder = os.path.join(folder, segment)
        if stat.S_ISLNK(os.lstat(folder).st_mode):
            raise OSError("a link leads there")
    return folder


def _content(path: str) -> bytes:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError("it is not a file")
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        if os.fstat(file.fileno()).st_size > DATA_MAX:
            raise OSError(f"it has more than {DATA_MAX >> 20} MiB, so send it with execnet.RSync")
        return file.read(DATA_MAX + 1)


def check_found(library: Library, names: Iterable[str]) -> None:
    """Raise ValueError for a name that is no module here, or in the standard library."""
    for name in names:
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise ValueError(f"{name} is of the standard library, which is never forwarded")
        if library.find(name) is None:
            raise ValueError(f"there is no module {name} here, so it can't be forwarded")


def names_in_spec(library: Library, settings: Settings) -> list[str]:
    """Return the names that ``imports=`` of a spec stands for; errors as above."""
    names = settings.imports
    if names is None:
        return []
    if not names:
        return names_of_folder(library, main_folder())
    try:
        check_found(library, names)
    except ValueError as exc:
        raise ValueError(f"spec {settings.spec.shown()!r}: {exc}") from None
    return list(names)


def forwarding_of(gateway: Inside, library: Library | None) -> Forwarding:
    """Return the object that forwards modules to a worker; OSError if it can't take any."""
    features = gateway.handshake.hello.get("features", "")
    if "imports" not in features.split():
        raise OSError(f"the worker of {gateway.id} can't import forwarded modules")
    return Forwarding(gateway, library or Library())
