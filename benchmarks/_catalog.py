"""What is measured, and with whom: two tables, ``BENCHMARKS`` and ``PEERS``.

A peer takes part in a benchmark when there is a program for both in the folder ``programs``:
``FAMILY_PROGRAM.py``. So a new peer is a row in ``PEERS`` and a few small programs, and a new
benchmark a row in ``BENCHMARKS`` and a program for each family that can do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """Something that is measured, ours included."""

    name: str
    family: str  # the prefix of its programs; peers of one family run the same ones
    requirement: str | None = None  # what pip installs for it; None: the standard library does
    from_tree: bool = False  # imported from the folder that this package stands in
    needs: tuple[str, ...] = ()  # programs of the system; it is skipped where one is missing


@dataclass(frozen=True)
class Benchmark:
    """One figure of each peer."""

    name: str
    title: str
    program: str
    arguments: tuple[str, ...]
    unit: str
    more_is_better: bool = False
    tail: bool = False  # the 99th percentile is told too: there are enough samples for one
    pinned: bool = False  # to one core
    families: tuple[str, ...] | None = None  # None: all that have the program
    needs: tuple[str, ...] = ()  # programs of the system; it is skipped where one is missing
    without: tuple[str, ...] = ()  # names of peers that can't do it, though others of their family
    tools: tuple[str, ...] = ()  # what pip installs for it beside each peer

    def program_for(self, peer: Peer) -> Path | None:
        """Return the script with which ``peer`` takes part, None when it does not."""
        if self.families is not None and peer.family not in self.families:
            return None
        if peer.name in self.without:
            return None
        script = PROGRAMS / f"{peer.family}_{self.program}.py"
        return script if script.exists() else None


PEERS = (
    Peer(OURS, "execnet", from_tree=True),
    Peer("ours-asyncio", "aio", from_tree=True),
    Peer("execnet-2.1.2", "execnet", "execnet==2.1.2"),
    Peer("mitogen", "mitogen", "mitogen==0.3.54"),
    Peer("rpyc", "rpyc", "rpyc==6.0.2"),
    Peer("multiprocessing", "multiprocessing"),
    Peer("futures", "futures"),
    Peer("forkserver", "forkserver"),
    Peer("pipe", "pipe"),
    Peer("pipe-1m", "pipe1m"),
    Peer("tcp", "tcp"),
    Peer("rsync", "rsync", needs=("rsync",)),
)

_SSH = ("ssh", "ssh-keygen", "sshd")


def _startup(name: str, title: str, how: str, *families: str) -> Benchmark:
    return Benchmark(name, title, "startup", (how,), "ms", families=families or None)


def _fresh(kind: str, title: str) -> Iterator[Benchmark]:
    """Yield how long a program waits for its first and second gateway of a kind."""
    needs = _SSH if kind in ("ssh", "shared") else ()
    without = ("mitogen",) if kind in ("socket", "via") else ()
    words = {
        "alone": "import and a program's first gateway of all, {}",
        "first": "a program's first gateway {}, after one popen gateway",
        "second": "a program's second gateway {}",
    }
    for which, text in words.items():
        if which == "alone" and kind in ("socket", "via"):
            continue  # they need a gateway to begin with
        name = f"startup-{kind}-{which}"
        words = name, text.format(title), "fresh", (kind, which), "ms"
        yield Benchmark(*words, needs=needs, without=without)


def _forkserver(how: str, title: str) -> Benchmark:
    # It takes the spec, but ignores keys that it does not know, and starts an interpreter.
    without = ("execnet-2.1.2",)
    name = f"startup-forkserver-{how}"
    return Benchmark(name, title, "forkserver", (how,), "ms", without=without)


def _round_trip(kind: str, title: str) -> Benchmark:
    name, title = f"roundtrip-{kind}", f"round trip of {title}"
    return Benchmark(name, title, "roundtrip", (kind,), "µs", tail=True, pinned=True)


def _transport(how: str, title: str) -> Benchmark:
    name, title = f"roundtrip-{how}", f"round trip of an int {title}"
    families = ("execnet", "tcp" if how == "socket" else "mitogen")
    words = ("transport", (how,), "µs")
    return Benchmark(name, title, *words, tail=True, pinned=True, families=families)


def _link(what: str, how: str) -> Benchmark:
    words = {
        "tcp": "by TCP on loopback, after the proofs (socket=)",
        "tls": "the same with TLS",
        "ssh": "over ssh on loopback",
    }
    needs = {"tcp": (), "tls": ("openssl",), "ssh": _SSH}[how]
    without = ("execnet-2.1.2",)  # its socket servers prove nothing
    is_bulk = what == "bulk"
    return Benchmark(
        f"link-{what}-{how}",
        f"{'64 MiB to the worker' if is_bulk else 'round trip of an int'}, {words[how]}",
        "link",
        (what, how),
        "MB/s" if is_bulk else "µs",
        more_is_better=is_bulk,
        tail=not is_bulk,
        pinned=not is_bulk,
        needs=needs,
        without=without,
    )


def _call(how: str, title: str) -> Benchmark:
    without = ("execnet-2.1.2",)  # it knows no calls
    return Benchmark(f"call-{how}", title, "call", (how,), "µs", tail=True, without=without)


def _map(name: str, chunksize: int, title: str) -> Benchmark:
    words = f"10,000 small calls on 4 workers, {title}"
    without = ("execnet-2.1.2",)
    return Benchmark(f"map-{name}", words, "map", (str(chunksize),), "ms", without=without)


def _arrays(how: str, title: str) -> Benchmark:
    words = f"arrays-{how}", f"64 MiB there and back, {title}", "arrays", (how,), "ms"
    if how == "bytes":
        return Benchmark(*words, families=("execnet",))
    return Benchmark(*words, without=("execnet-2.1.2",), tools=("numpy",))


def _mixed(direction: str, pieces: str) -> Benchmark:
    where = "to the worker" if direction == "send" else "from the worker"
    what = "256 items of 1 MiB" if pieces == "items" else "one item of 256 MiB"
    title = f"round trip of an int while {what} pass {where} on another channel"
    name = f"mixed-{direction}-{pieces}"
    return Benchmark(name, title, "mixed", (direction, pieces), "ms", tail=True)


def _idle(what: str, unit: str, title: str) -> Benchmark:
    families = None if what == "worker" else ("execnet", "aio")
    without = ("ours-asyncio",) if what in ("worker", "cpu") else ()
    words = (f"idle-{what}", title, "idle", (what,), unit)
    return Benchmark(*words, families=families, without=without)


def _xdist(what: str, unit: str, title: str) -> Benchmark:
    title = f"pytest-xdist, 2,000 empty tests, -n 2: {title}"
    tools = ("pytest<9.2", "pytest-xdist")
    needs = ("cc",) if what == "share" else ()
    return Benchmark(f"xdist-{what}", title, "xdist", (what,), unit, needs=needs, tools=tools)


def _one_way(direction: str, kind: str, how: str) -> Benchmark:
    where = "to the worker" if direction == "send" else "from the worker"
    return Benchmark(
        f"oneway-{direction}-{kind}-{how}",
        f"100,000 small items ({kind}) {where}, taken by {how}",
        "oneway",
        (direction, kind, how),
        "thousand/s",
        more_is_better=True,
        families=("execnet",) if how == "callback" else None,
    )


def _bulk(direction: str, size: str, title: str) -> Benchmark:
    where = "to the worker" if direction == "send" else "from the worker"
    return Benchmark(
        f"bulk-{direction}-{size}",
        f"bytes of {title} {where}",
        "bulk",
        (direction, size),
        "MB/s",
        more_is_better=True,
    )


def _bulk_via(direction: str) -> Benchmark:
    where = "a worker that is reached through another (via=)"
    return _bulk_behind("via", direction, "1m", "popen//via=first", where)


def _bulk_socket(direction: str) -> Benchmark:
    where = "a worker by TCP on loopback (socket=)"
    return _bulk_behind("socket", direction, "64k", "socket//installvia=first", where)


def _bulk_behind(name: str, direction: str, size: str, spec: str, where: str) -> Benchmark:
    way = "to" if direction == "send" else "from"
    return Benchmark(
        f"bulk-{name}-{direction}-{size}",
        f"bytes of {_SIZES[size]} {way} {where}",
        "bulk",
        (direction, size, spec),
        "MB/s",
        more_is_better=True,
        families=("execnet",),
    )


def _shared(direction: str, size: str, how: str) -> Benchmark:
    where = "to the worker" if direction == "send" else "from the worker"
    made = "copied once" if how == "copied" else "made in place"
    return Benchmark(
        f"shared-{direction}-{size}-{how}",
        f"buffers of {_SIZES[size]} {where} in shared memory, {made}",
        "shared",
        (direction, size, how),
        "MB/s",
        more_is_better=True,
        without=("execnet-2.1.2",),
    )


def _serializer(function: str, shape: str, title: str) -> Benchmark:
    name, title = f"{function}-{shape}", f"{function} of {title}"
    return Benchmark(name, title, "serializer", (function, shape), "ms")


def _rsync(how: str, name: str, title: str, *arguments: str) -> Benchmark:
    where = {
        "local": "on this machine",
        "ssh": "over ssh on loopback",
        "defaults": "over ssh on loopback, with each one's defaults",
    }[how]
    without = ("execnet-2.1.2",) if "resumed" in arguments else ()  # it begins again
    return Benchmark(
        f"rsync-{how}-{name}",
        f"{title}, {where}",
        "rsync",
        (how, *arguments),
        "s",
        needs=() if how == "local" else _SSH,
        without=without,
    )


def _memory(name: str, title: str, unit: str, *arguments: str) -> Benchmark:
    title = f"memory above idle of RSync's larger side, {title}"
    without = ("execnet-2.1.2",)  # it has no place for a file of 4 GiB
    return Benchmark(f"rsync-memory-{name}", title, "memory", arguments, unit, without=without)


def _deploy(name: str, title: str, unit: str) -> Benchmark:
    without = ("execnet-2.1.2",)  # it makes no environments
    what = tuple(name.split("-"))
    return Benchmark(f"xdeploy-{name}", title, "deploy", what, unit, needs=_SSH, without=without)


_DIRECTIONS = ("send", "collect")
_SIZES = {"64k": "64 KiB", "1m": "1 MiB", "64m": "64 MiB"}
_SHAPES = {
    "ints": "a list of 100,000 ints",
    "dicts": "a list of 10,000 small dicts",
    "reports": "a test report, 2,000 times",
    "nested": "a nested structure of all types",
    "bytes": "100 MB of bytes",
}
_SYNCS = (
    ("tree-first", "10,000 files of 2 KB, first copy", "tree", "first"),
    ("tree-unchanged", "10,000 files of 2 KB, unchanged", "tree", "unchanged"),
    ("tree-touched", "10,000 files of 2 KB, 1 % changed", "tree", "touched"),
    ("tree-eight", "10,000 files of 2 KB to 8 targets", "tree", "first", "8"),
    ("file-first", "a file of 512 MB, first copy", "file", "first"),
    ("file-changed", "a file of 512 MB, 1 byte changed", "file", "changed"),
    ("file-appended", "a file of 512 MB, 1 MB appended", "file", "appended"),
    ("file-renewed", "a file of 512 MB, all of it changed", "file", "renewed"),
    ("file-resumed", "a file of 512 MB, cut off after 80 %", "file", "resumed"),
    ("file-shifted", "a file of 50 MB, 1 byte put in front", "moved", "shifted"),
    ("project-first", "1,008 files of 21 MB, first copy", "project", "first"),
    ("project-unchanged", "1,008 files of 21 MB, unchanged", "project", "unchanged"),
    ("project-touched", "1,008 files of 21 MB, 1 % changed", "project", "touched"),
)

BENCHMARKS = (
    Benchmark("import", "import in the coordinator", "import", (), "ms"),
    Benchmark("import-names", "import of the names in use", "names", (), "ms"),
    Benchmark("startup-first", "import and one popen gateway to its answer", "first", (), "ms"),
    _startup("startup-one", "one more popen gateway to its first answer", "one"),
    _startup("startup-many", "32 popen gateways in one group to all their answers", "many"),
    _startup("startup-threads", "the same, from 32 threads", "threads", "execnet"),
    _forkserver("one", "one more forkserver gateway to its first answer"),
    _forkserver("many", "32 forkserver gateways in one group to all their answers"),
    Benchmark(
        "startup-ssh",
        "one more gateway over ssh on loopback to its first answer",
        "ssh",
        (),
        "ms",
        needs=_SSH,
    ),
    *_fresh("python", "of another interpreter"),
    *_fresh("socket", "by TCP on loopback"),
    *_fresh("via", "through another"),
    *_fresh("ssh", "over ssh on loopback"),
    *_fresh("shared", "over a connection of ssh's that is there"),
    _round_trip("int", "an int"),
    _round_trip("nested", "a nested item of 2,400 values"),
    _call("call", "a call of a function by its name"),
    _call("submit", "the same, submitted and waited for"),
    _call("channel", "the same items there and back over a channel"),
    Benchmark(
        "modules",
        "a worker's first call, which imports 200 modules over a link with 100 ms delay",
        "modules",
        (),
        "ms",
        without=("execnet-2.1.2",),
    ),
    _map("single", 1, "one at a time"),
    _map("chunks", 100, "in chunks of 100"),
    _transport("socket", "by TCP on loopback (socket=)"),
    _transport("via", "with a worker that is reached through another (via=)"),
    *(_link(what, how) for what in ("roundtrip", "bulk") for how in ("tcp", "tls", "ssh")),
    *(_mixed(direction, pieces) for direction in _DIRECTIONS for pieces in ("items", "whole")),
    *(
        _one_way(direction, kind, how)
        for direction in _DIRECTIONS
        for kind in ("int", "dict")
        for how in ("receive", "callback")
    ),
    *(_bulk(direction, *size) for direction in _DIRECTIONS for size in _SIZES.items()),
    *map(_bulk_via, _DIRECTIONS),
    *map(_bulk_socket, _DIRECTIONS),
    *(
        _shared(direction, size, how)
        for direction in _DIRECTIONS
        for size in ("1m", "64m")
        for how in ("copied", "made")
    ),
    _arrays("bytes", "as bytes"),
    _arrays("codec", "as an array of numpy"),
    _arrays("buffer", "from an array of numpy and into another"),
    *(
        _serializer(function, *shape)
        for function in ("dumps", "loads")
        for shape in _SHAPES.items()
    ),
    _idle("worker", "MiB", "memory (PSS) of an idle popen worker, or of a bare interpreter"),
    _idle("memory", "KiB", "memory of the coordinator for each of 100 idle popen gateways"),
    _idle("threads", "threads", "all threads of the coordinator with 100 idle popen gateways"),
    _idle("descriptors", "descriptors", "all descriptors of the coordinator with these"),
    _idle("cpu", "ms/s", "time on the processors of the coordinator and its 100 idle workers"),
    _xdist("run", "s", "the whole run"),
    _xdist("share", "%", "execnet's share of the processors' time, by samples"),
    *(_rsync(how, *sync) for how in ("local", "ssh", "defaults") for sync in _SYNCS),
    _memory("file-first", "a file of 4 GiB, first copy", "MiB", "file", "first"),
    _memory("file-changed", "a file of 4 GiB, some bytes changed", "MiB", "file", "changed"),
    _memory("tree-first", "200,000 small files", "bytes a file", "tree", "first"),
    _deploy("warm", "a worker in an environment over ssh that is there, beside a plain one", "x"),
    _deploy("warm-other", "the same, with another build of Python over there", "x"),
    _deploy("sync", "a project over there of which one file of 200 has changed", "ms"),
    _deploy("first", "the same for a worker that has just started", "ms"),
    _deploy("first-other", "the same, with another build of Python over there", "ms"),
    _rsync("ssh", "connect", "a gateway, or ssh to its end", "tree", "connect"),
)


class UnknownName(ValueError):
    """No benchmark or peer is called that; the text lists those that there are."""


def benchmarks_named(words: Iterable[str]) -> list[Benchmark]:
    """Return the benchmarks that ``words`` name, in the table's order; all when there are none.

    A word is a name, the first parts of names (``oneway-send``), or either as a pattern
    (``*-64k``, ``oneway-*-int``).
    Raises UnknownName for a word that names none.
    """
    words = list(words)
    wanted: set[str] = set()
    for word in words:
        found = [benchmark.name for benchmark in BENCHMARKS if _names(word, benchmark.name)]
        if not found:
            known = "\n  ".join(benchmark.name for benchmark in BENCHMARKS)
            raise UnknownName(f"no benchmark is named {word!r}; there are:\n  {known}")
        wanted.update(found)
    return [benchmark for benchmark in BENCHMARKS if benchmark.name in wanted or not words]


def _names(word: str, name: str) -> bool:
    return fnmatchcase(name, word) or fnmatchcase(name, f"{word}-*")


def peers_named(words: Iterable[str] | None) -> list[Peer]:
    """Return ours and the peers with these names, in the table's order; all peers for None.

    Raises UnknownName for a name that no peer has.
    """
    if words is None:
        return list(PEERS)
    known = {peer.name for peer in PEERS}
    words = set(words)
    for word in sorted(words - known):
        raise UnknownName(f"no peer is named {word!r}; there are: {', '.join(sorted(known))}")
    return [peer for peer in PEERS if peer.name in words or peer.name == OURS]
