"""``execnet sync``: copy a file or a directory tree to one or many places.

``RSync`` does the work; this module has the arguments and the output.  Start at ``run``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import fields
from typing import Any, TypeVar

from .._rsync.direct import direct
from .._rsync.far.changes import changes
from .._rsync.patterns import Rule, gitignore_rules, lines_of, parse_rules, pattern_rules
from .._rsync.pull import pull
from .._rsync.relay import relay
from .._rsync.result import Progress, TargetResult, printable
from .._ship.parts import run as run_part
from ..gateway import Gateway
from ..gateway_base import ExecnetError
from ..rsync import RSync, pull_options
from ..xspec import XSpec
from .bar import Bar, new_bar
from .session import STATUS_FAILED, CommandError, Session, WatchedGroup, supervise
from .words import Commands, add_command, parse_specs

Outcome = TypeVar("Outcome")

_FAILURES = (ExecnetError, EOFError, OSError)  # those of single targets are in their results
_DESCRIPTION = """\
Copy SRC, a file or a directory, to the path DEST of one interpreter per SPEC, all at once, and
send only what is missing there: new files, and the changed parts of old ones.  Each file is
replaced as a whole when its new content is complete.  Missing directories are made.

A SPEC says where an interpreter is and how to start it, such as "ssh=user@host" or "popen"; DEST
is what follows the last colon, a path on that host; "~" and "~user" are home directories there,
or here in a path of this machine.
SRC may have the same form, with one DEST: then it is copied from there to here, or to another
interpreter, through this program unless --direct is given.  If a local file has such a name, it
means that file.
"""
_EPILOG = """\
A PATTERN is like those of rsync: "*.o" is compared with the name of each file and directory,
"a/*.o" with the end of its path, "/a" with the whole path below SRC; "name/" is for directories
only, and "**" matches slashes too.  A RULE is "- PATTERN", "+ PATTERN", "merge FILE" for a file
with a rule in each line, or "merge,- FILE" for one with a pattern in each; a FILE named
".gitignore" is read as git reads it.  The first pattern that matches counts, in the order of the
command line.  Leaving out a directory leaves out everything
in it.  What is left out is not deleted either.

On a terminal a bar shows the progress if "rich" is installed (pip install execnet[cli]);
otherwise a line is printed for each file that is sent.

exit status:
  0    everything was copied
  1    something could not be read or written, or a target failed
  2    the command line is wrong: nothing was started
  130  Ctrl-C (143 after SIGTERM, 129 after SIGHUP)

examples:
  execnet sync src popen:/tmp/copy
  execnet sync --delete --exclude '*.pyc' src ssh=host1:/srv/app ssh=host2:/srv/app
  execnet sync ssh=host1:/var/log/app logs
  execnet sync ssh=host1:/srv/data ssh=host2:/srv/data
  execnet sync --direct ssh=host1:/srv/data ssh=host2:/srv/data
  execnet sync --watch src ssh=host1:/srv/app
"""
_LEAVE_S = 1.0  # how long what was interrupted may take to clean up here


def add_parser(subparsers: Commands) -> None:
    """Add the parser of ``execnet sync``."""
    parser = add_command(
        subparsers,
        "sync",
        "copy a directory tree to other hosts, sending only what changed",
        _DESCRIPTION,
        _EPILOG,
        usage="execnet sync [options] SRC SPEC:DEST...\n"
        "       execnet sync [options] SPEC:SRC DEST\n"
        "       execnet sync [options] SPEC:SRC SPEC:DEST",
    )
    parser.add_argument("source", metavar="SRC", help="what to send; PATH or SPEC:PATH")
    parser.add_argument("words", nargs="+", metavar="DEST", help="where to; PATH or SPEC:PATH")
    parser.add_argument("--delete", action="store_true", help="remove what SRC does not have")
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="change nothing, print what would be done"
    )
    parser.add_argument(
        "--delete-excluded",
        action="store_true",
        help="remove what SRC does not have, and what the patterns leave out",
    )
    _add_transfer(parser)
    _add_attributes(parser)
    _add_rules(parser)
    _add_output(parser)
    parser.set_defaults(run=run)


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    """Add the options for how content travels, and when."""
    parser.add_argument(
        "--partial",
        action="store_true",
        help="if it ends early, keep the parts of large files, and continue from them next time",
    )
    parser.add_argument(
        "-z",
        "--compress",
        action="store_true",
        help="compress what is sent, except to this machine",
    )
    parser.add_argument(
        "--bwlimit",
        type=_rate,
        metavar="RATE",
        help="send this many KiB a second on average; or bytes, MiB or GiB with B, M or G",
    )
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and copy what changes below SRC"
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="have the interpreter at SRC start the one at DEST; nothing passes through here",
    )


def _add_attributes(parser: argparse.ArgumentParser) -> None:
    """Add the options for modes, times, owners and links."""
    parser.add_argument("--no-perms", action="store_true", help="do not preserve modes")
    parser.add_argument("--no-times", action="store_true", help="do not preserve times")
    parser.add_argument(
        "--owner", action="store_true", help="preserve users and groups, by name or else by number"
    )
    parser.add_argument(
        "--modify-window",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="treat times as equal that differ by at most this (0)",
    )
    parser.add_argument(
        "--links",
        choices=("as-is", "inside", "none"),
        help="which links to make (as-is; when copying to here: those that stay inside)",
    )
    parser.add_argument(
        "--mask",
        type=_mask,
        default=0o022,
        metavar="OCTAL",
        help="bits to drop from modes when copying from a worker to here (022)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is printed."""
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print each file, even if there is a progress bar",
    )
    parser.add_argument("--stats", action="store_true", help="print statistics")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON per DEST"
    )


def _rate(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([BKMG]?)", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate above 0, such as 500 or 2.5M")
    rate = float(match[1]) * 1024.0 ** "BKMG".index(match[2].upper() or "K")
    return max(rate, 1.0)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def _mask(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (mask := int(text, 8)) <= 0o777:
            return mask
    raise argparse.ArgumentTypeError(f"{text!r} is not an octal number up to 777")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """Add the options that select what is copied; their order counts."""

    def add(
        name: str, parse: Callable[[str], Sequence[Rule | str]], metavar: str, text: str
    ) -> None:
        def parse_or_refuse(value: str) -> Sequence[Rule | str]:
            try:
                return parse(value)
            except (OSError, ValueError) as exc:
                raise argparse.ArgumentTypeError(str(exc)) from exc

        parser.add_argument(
            name, dest="rules", action="append", default=[], type=parse_or_refuse,
            metavar=metavar, help=text,
        )  # fmt: skip

    def from_file(takes_part: bool) -> Callable[[str], list[Rule]]:
        return lambda path: [r for line in lines_of(path) for r in pattern_rules(line, takes_part)]

    add("--exclude", lambda text: pattern_rules(text, False), "PATTERN", "leave out what matches")
    add("--include", lambda text: pattern_rules(text, True), "PATTERN", "keep what matches")
    add("--exclude-from", from_file(False), "FILE", "leave out what a line of FILE matches")
    add("--include-from", from_file(True), "FILE", "keep what a line of FILE matches")
    add("--filter", _checked_rule, "RULE", "add a rule")
    parser.add_argument(
        "--gitignore",
        dest="rules",
        action="append_const",
        const=None,
        help="leave out what the .gitignore files in SRC do",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say, and return the exit status."""
    if not os.path.lexists(args.source):
        args.source = os.path.expanduser(args.source)
    far, targets = _places_of(args)
    rules = _rules_of(args)
    bar = new_bar(args)
    is_over = threading.Event()
    is_over.set()

    def job(session: Session) -> int:
        is_over.clear()
        try:
            return work_in(session)
        finally:
            is_over.set()

    def work_in(session: Session) -> int:
        if bar is not None:
            bar.start()
        others = [] if args.direct else targets
        specs = [spec for spec, _ in ([far, *others] if far else targets)]
        gateways = session.group.start_all(specs)
        # when the command is interrupted, they still remove or keep what has half arrived
        session.pending.update(dict.fromkeys(gateway.id for gateway in gateways))
        work = _Work(args, rules, session, bar, os.path.basename(far[1] if far else args.source))
        if far is None:
            return work.send(list(zip(gateways, [dest for _, dest in targets], strict=True)))
        if not targets:
            return work.pull(gateways[0], far[1], args.words[0])
        if args.direct:
            return work.direct(gateways[0], far[1], targets[0])
        return work.relay(gateways[0], far[1], gateways[1], targets[0][1])

    try:
        return supervise("sync", job, group=WatchedGroup())
    finally:
        is_over.wait(_LEAVE_S)  # an interrupted copy to here has its own half file to remove
        if bar is not None:
            bar.stop()  # the terminal needs its cursor back, however it ended


def _places_of(
    args: argparse.Namespace,
) -> tuple[tuple[XSpec, str] | None, list[tuple[XSpec, str]]]:
    """Return SRC if it is at a worker, and the DESTs that are; refuse what does not fit."""
    far = None if os.path.exists(args.source) else _far_place(args.source)
    if far is None and not os.path.exists(args.source):
        raise CommandError(f"there is no {args.source!r}")
    if far is not None and (None in args.rules or len(args.words) > 1):
        raise CommandError("--gitignore and several DESTs need a SRC that is here")
    if far is None:
        targets = parse_targets(args.words)
    else:
        place = _far_place(args.words[0])
        targets = [place] if place else []
    if args.direct and not (far and targets):
        raise CommandError("--direct needs a SRC and a DEST of the form SPEC:PATH")
    return far, targets


def _checked_rule(text: str) -> list[str]:
    """Return a rule as it is, since "!" clears all before it; ValueError if it is malformed."""
    parse_rules([text])
    return [text]


def _rules_of(args: argparse.Namespace) -> list[Rule]:
    """Return the rules; their files are read only now, also with ``--watch``.

    One that is read while somebody is writing it would have everything sent that it leaves out.
    """
    rules: list[Rule | str] = []
    try:
        for part in args.rules:
            rules += gitignore_rules(args.source) if part is None else part
        return parse_rules(rules)
    except (OSError, ValueError) as exc:
        raise CommandError(printable(_reason_of(exc))) from exc


def _far_place(word: str) -> tuple[XSpec, str] | None:
    """Return the spec and path of a word, None if it is not ``SPEC:PATH``."""
    try:
        [place] = parse_targets([word])
    except (CommandError, ValueError):
        return None
    return place


def parse_targets(words: Sequence[str]) -> list[tuple[XSpec, str]]:
    """Return the specs and paths of ``SPEC:DEST`` words; ``CommandError`` for a bad one."""
    pairs = [_split_target(word) for word in words]
    parse_specs([spec for spec, _ in pairs])  # finds an id that is given twice
    return [(spec, dest) for word, dest in pairs for spec in parse_specs([word])]


def _split_target(word: str) -> tuple[str, str]:
    """Split at the last colon, except that of a Windows drive."""
    match = re.fullmatch(r"(.+?):([A-Za-z]:[\\/][^:]*)", word, re.DOTALL)
    match = match or re.fullmatch(r"(.+):([^:]+)", word, re.DOTALL)
    if match is None:
        raise CommandError(f"{word!r} is not SPEC:DEST, such as ssh=host:/path or popen:path")
    return match[1], match[2]


class _Work:
    """The work once all interpreters run, and its output.

    name: of the source, whose own path below the source is empty.
    """

    def __init__(
        self, args: argparse.Namespace, rules: list[Rule], session: Session, bar: Bar | None,
        name: str,
    ) -> None:  # fmt: skip
        self._args = args
        self._name = name
        self._rules = rules
        self._session = session
        self._bar = bar
        self._options: dict[str, Any] = {
            "delete": args.delete,
            "delete_excluded": args.delete_excluded,
            "dry_run": args.dry_run,
            "modes": not args.no_perms,
            "times": not args.no_times,
            "owners": args.owner,
            "modify_window": args.modify_window,
            "partial": args.partial,
            "compress": args.compress,
            "bwlimit": args.bwlimit,
        }

    def send(self, targets: list[tuple[Gateway, str]]) -> int:
        """Copy from here to workers, again after each change if wanted; return the status."""
        status = 0
        for _ in changes(self._args.source) if self._args.watch else [None]:
            rsync = _Sync(self._args.source, self._rules, self)
            for gateway, dest in targets:
                links = self._args.links or "as-is"
                rsync.add_target(gateway, dest, expanduser=True, links=links, **self._options)
            status = self._send_once(rsync)
        return status

    def _send_once(self, rsync: RSync) -> int:
        def send() -> None:
            try:
                rsync.send()
            except _FAILURES:
                if rsync.result is None or not any(one.error for one in rsync.result.targets):
                    raise

        self._try(send)
        assert rsync.result is not None
        return self.finish(rsync.result.targets)

    def pull(self, gateway: Gateway, source: str, dest: str) -> int:
        """Copy from a worker to here; return the status."""
        options = pull_options(
            gateway, mask=self._args.mask, links=self._args.links or "inside", expands=True,
            keeps_apart=True, **self._options,
        )  # fmt: skip

        def work() -> TargetResult:
            return pull(
                gateway, source, dest, options, self._rules, self.progress, None, self.tell_file
            )

        return self._bring(gateway, source, work)

    def relay(self, source: Gateway, path: str, target: Gateway, dest: str) -> int:
        """Copy from one worker to another one; return the status."""
        options = pull_options(
            source, mask=0, links=self._args.links or "as-is", expands=True, keeps_apart=True,
            **self._options,
        )  # fmt: skip

        def work() -> TargetResult:
            places = source, os.fsencode(path), target, os.fsencode(dest)
            return relay(*places, options, self._rules, lambda path: self.tell_file(path, target))

        return self._bring(source, path, work)

    def direct(self, source: Gateway, path: str, target: tuple[XSpec, str]) -> int:
        """Have a worker copy to another one that it starts; return the status."""
        options = {**self._options, "links": self._args.links or "as-is"}
        spec, dest = str(target[0]), os.fsencode(target[1])

        def work() -> TargetResult:
            places = source, os.fsencode(path), spec, dest
            return direct(*places, options, self._rules, lambda path: self.tell_file(path, source))

        return self._bring(source, path, work)

    def _bring(self, source: Gateway, path: str, work: Callable[[], TargetResult]) -> int:
        """Copy from a worker, again after each change if wanted; return the status."""
        status = 0
        for _ in self._far_changes(source, path) if self._args.watch else [None]:
            status = self.finish([self._try(work)])
        return status

    def _far_changes(self, gateway: Gateway, path: str) -> Iterator[None]:
        """Yield each time something has changed below a path of a worker."""
        with closing(run_part(gateway, "_rsync.far.changes")) as channel:
            channel.send(os.fsencode(path))
            while True:
                self._try(channel.receive)
                yield None
                self._try(lambda: channel.send(True))

    def _try(self, work: Callable[[], Outcome]) -> Outcome:
        """Do something; an error that is not of one target ends the command."""
        try:
            return work()
        except _FAILURES as exc:
            raise CommandError(printable(_reason_of(exc)), STATUS_FAILED) from exc

    def tell_file(self, path: str, gateway: Gateway) -> None:
        """Print that a file is sent, unless a bar shows it or a program reads the output."""
        if self._args.json or (self._bar is not None and not self._args.verbose):
            return
        self._print(path or self._name, gateway)

    @property
    def progress(self) -> Progress | None:
        return None if self._bar is None else self._bar.tell

    def _print(self, text: str, gateway: Gateway) -> None:
        try:
            self._session.out.write(printable(text), f"[{gateway.id}] ")
        except OSError as exc:
            self._session.stdout_failed(exc)

    def finish(self, targets: list[TargetResult]) -> int:
        """Print the results of targets; return the exit status."""
        if self._bar is not None and not self._args.watch:
            self._bar.stop()
        for target in targets:
            if self._args.json:
                self._print_json(target)
            else:
                self._report(target)
        return 0 if all(target.ok for target in targets) else STATUS_FAILED

    def _print_json(self, target: TargetResult) -> None:
        found = {
            field.name: getattr(target, field.name)
            for field in fields(target)
            if field.name not in ("gateway", "skipped", "error")
        }
        found["skipped"] = [[skipped.path, skipped.reason] for skipped in target.skipped]
        found["error"] = None if target.error is None else str(target.error)
        line = json.dumps({"gateway": target.gateway.id, "ok": target.ok, **found})
        try:
            self._session.out.write(line)
        except OSError as exc:
            self._session.stdout_failed(exc)

    def _report(self, target: TargetResult) -> None:
        for path in target.planned:
            self._print(f"would send {path or self._name}", target.gateway)
        for path in target.planned_deletions:
            self._print(f"would delete {path}", target.gateway)
        place = f"execnet sync: [{target.gateway.id}]"
        for skipped in target.skipped:
            self._session.err.write(
                printable(f"{place} {skipped.path or self._name}: {skipped.reason}")
            )
        for name, count in target.refused.items():
            text = f"{place} cannot set {name} there, of {count} entries"
            self._session.err.write(text)
        for name, count in target.unlisted.items():
            self._session.err.write(f"{place} {count} more are {name}")
        if target.error is not None:
            self._session.err.write(printable(f"{place} {_reason_of(target.error)}"))
        elif not (target.planned or target.planned_deletions):
            self._print(_summary(target), target.gateway)
        if self._args.stats and target.error is None:
            for line in _statistics(target):
                self._print(line, target.gateway)


class _Sync(RSync):
    """A synchronisation that prints where the command's output goes."""

    _keeps_apart = True

    def __init__(self, source: str, rules: list[Rule], work: _Work) -> None:
        super().__init__(source, verbose=False, progress=work.progress, rules=rules)
        self._work = work

    def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
        self._work.tell_file(modified_rel_path, gateway)


def _reason_of(exc: BaseException) -> str:
    """Return the text of an error, without a number."""
    if not isinstance(exc, OSError) or exc.strerror is None:
        return str(exc)
    return f"{os.fsdecode(exc.filename)}: {exc.strerror}" if exc.filename else str(exc.strerror)


def _statistics(target: TargetResult) -> list[str]:
    rate = target.bytes_sent / target.seconds if target.seconds else 0.0
    return [
        f"files sent: {target.files_sent}",
        f"files with other times, modes or links: {target.settled}",
        f"unchanged: {target.unchanged}",
        f"deleted: {target.deleted}",
        f"left out: {len(target.skipped) + target.unlisted.get('skipped', 0)}",
        f"bytes sent: {target.bytes_sent}",
        f"seconds: {target.seconds:.3f}",
        f"bytes a second: {rate:.0f}",
    ]


def _summary(target: TargetResult) -> str:
    parts = [
        f"{target.files_sent} {'file' if target.files_sent == 1 else 'files'} sent "
        f"({_size(target.bytes_sent)})",
        f"{target.unchanged} unchanged",
        f"{target.settled} with other times or links" if target.settled else "",
        f"{target.deleted} deleted" if target.deleted else "",
        f"{len(target.skipped)} left out" if target.skipped else "",
        f"{target.seconds:.2f} s",
    ]
    return f"{target.destdir}: {', '.join(filter(None, parts))}"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
