"""RSync: copy one tree to many places, sending only what is not there yet.

``RSync`` is the public class.  Its runs are in ``_rsync.push``, the code that reads the source in
``_rsync.far.tree``, the code that is shipped to the targets in ``_rsync.far.target``; the docstring
of the latter explains the messages.
"""

from __future__ import annotations

import os
from functools import partial

# The machinery is imported when work begins: many programs import this class and never use it.
from ._log import INFO, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ._rsync.far.wire import Settings, Wishes
    from ._rsync.patterns import Rule
    from ._rsync.push import Target
    from ._rsync.result import Progress, Result, Skipped, TargetResult
    from .gateway import Gateway

    Callback = Callable[[str, int, Any], object]


def _parsed(rules: Iterable[str | Rule]) -> list[Rule]:
    if not rules:
        return []
    from ._rsync.patterns import parse_rules  # few programs have rules

    return parse_rules(rules)


_OPTIONS = {
    "bwlimit", "compress", "delete", "delete_excluded", "dry_run", "expanduser", "links", "modes",
    "modify_window", "owners", "partial", "times",
}  # fmt: skip

_MOST = 2.0**53  # more than any number of seconds, or of bytes a second


def _nanoseconds(seconds: float) -> int:
    if not seconds >= 0:
        raise ValueError(f"modify_window must not be negative: {seconds}")
    return int(min(seconds, _MOST) * 1_000_000_000)


def _is_local(gateway: Gateway) -> bool:
    return bool(gateway.spec.popen and not gateway.spec.via)


def _positive(name: str, value: float | None) -> int:
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be more than 0, and is {value}")
    return 0 if value is None else max(1, int(min(value, _MOST)))  # 0 stands for None


def _checked_links(links: str) -> str:
    if links not in ("as-is", "inside", "none"):
        raise ValueError(f"links must be 'as-is', 'inside' or 'none', and is {links!r}")
    return links


def _refuse_home(path: str | os.PathLike[str]) -> None:
    """Refuse a path that a shell would expand, but that would be taken literally here."""
    text = os.fspath(path)
    if text[:1] in ("~", b"~"):
        raise ValueError(
            f"{text!r} is not expanded: use os.path.expanduser() on that host, "
            "the option expanduser=True of add_target(), or './~' for such a name"
        )


def pull_options(
    gateway: Gateway, *, delete: bool = False, delete_excluded: bool = False, dry_run: bool = False,
    modes: bool = True, times: bool = True, owners: bool = False, modify_window: float = 0,
    partial: bool = False, compress: bool = False, bwlimit: float | None = None, mask: int = 0o022,
    links: str = "inside", max_files: int | None = None, max_bytes: int | None = None,
    expands: bool = False, keeps_apart: bool = False,
) -> Wishes:  # fmt: skip
    """Return the options of ``_rsync.pull`` and ``_rsync.relay``; ValueError for a bad value.

    expands: a "~" at the beginning of the source, or of a target here, is the home directory of
    that side.  keeps_apart: refuse a source in the target, and a target in the source.
    """
    return {
        "delete": delete or delete_excluded,
        "dry_run": dry_run,
        "delete_excluded": delete_excluded,
        "modes": modes,
        "times": times,
        "owners": owners,
        "is_bounded": max_bytes is None,
        "window_ns": _nanoseconds(modify_window),
        "partial": partial,
        "compress": compress and not _is_local(gateway),
        "most_per_s": _positive("bwlimit", bwlimit),
        "expands": expands,
        "keeps_apart": keeps_apart,
        "mask": mask,
        "links": _checked_links(links),
        "max_files": max_files,
        "max_bytes": max_bytes,
    }


def _told(source: str, target: Target) -> str:
    """Return the outcome of a target, for a log."""
    result = target.result
    sent = f"{result.files_sent} files, {result.bytes_sent} bytes sent"
    where = f"{source} to {target.gateway.id}:{result.destdir}"
    return f"{where}: {sent}" if result.error is None else f"{where}: {result.error}"


class RSync:
    """Sends a file or a directory tree to any number of gateways at once.

    sourcedir: the file or directory to send.
    callback: called with ("list", bytes needed, channel) once a target knows what it needs, then
        with ("ack", bytes of the file, channel) for each file that has arrived.
    verbose: print what is sent and what is left out.
    progress: called with (bytes to transfer, bytes done, current path); see ``Progress``.
    rules: filter rules like those of the program rsync, such as ``- *.o`` or ``+ /keep/``; the
        first one that matches a path below the source decides whether it is included.

    Raises ValueError for a rule that is malformed.
    Subclasses may override ``filter`` and ``_report_send_file``.  All of these run in the thread
    that calls ``send``.
    """

    _keeps_apart = False  # whether a source in the target, and a target in the source, is refused

    def __init__(
        self,
        sourcedir: str | os.PathLike[str],
        callback: Callback | None = None,
        verbose: bool = True,
        *,
        progress: Progress | None = None,
        rules: Iterable[str | Rule] = (),
    ) -> None:
        self._rules = _parsed(rules)
        self._sourcedir = os.fspath(sourcedir)
        self._verbose = verbose
        self._callback = callback
        self._progress = progress
        self._targets: list[Target] = []
        self.result: Result | None = None  # of the last ``send``, even if it failed

    def __repr__(self) -> str:
        targets = [f"{target.gateway.id}:{target.result.destdir}" for target in self._targets]
        return f"<RSync {self._sourcedir!r} to {', '.join(targets) or 'no target'}>"

    def filter(self, path: str) -> bool:
        """Return whether a path below the source is sent; a directory takes its content along."""
        return True

    def add_target(
        self,
        gateway: Gateway,
        destdir: str | os.PathLike[str],
        finishedcallback: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        """Add a place that the next ``send`` goes to.

        destdir: a directory there, which is made if needed.  If the source is a single file, the
            path that it gets, or a directory that it is put into.
        finishedcallback: called when this target is done.
        options: ``delete`` removes what the source does not have, except what ``filter`` and the
            rules leave out; ``delete_excluded`` removes that too.  ``dry_run`` changes nothing and
            puts into the result what would be done.  With ``expanduser``, a "~" at the beginning of
            destdir is the home directory there, and "~name" that of a user.  With ``modes=False``
            or ``times=False``, new files get the defaults there, and existing ones keep theirs.
            With ``owners``, files belong to the users and groups with the same names there, or with
            the same numbers where there are no such names.  Times that differ by at most
            ``modify_window`` seconds count as the same.  With ``partial``, the parts of a large
            file that had arrived when a run ended early are kept there, and the next run with
            ``partial`` continues from them.  With ``compress``, content is compressed in transit
            where that makes it smaller, except to a worker on this machine.  ``bwlimit`` is how
            many bytes a second may be sent, on average.  ``links`` is "as-is", "inside" for those
            that cannot lead out of the tree, or "none".
        Raises TypeError for any other option, ValueError for a "~" without ``expanduser`` or any
        other value of ``links``, and OSError if the gateway is gone.
        """
        from ._ship.parts import run
        from ._via.blobs import sender_to

        gateway.refuse_blocking()  # one of ``execnet.aio`` does
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise TypeError(f"add_target() got unknown options: {', '.join(unknown)}")
        if not options.get("expanduser"):
            _refuse_home(destdir)
        settings = self._settings_of(options, os.fsencode(destdir))
        settings["compress"] = settings["compress"] and not _is_local(gateway)
        channel = run(gateway, "_rsync.far.target", send=sender_to(gateway))
        from ._rsync.push import Target  # while the worker compiles what it was sent

        self._targets.append(
            Target(gateway, channel, os.fsdecode(destdir), finishedcallback, settings)
        )

    def _settings_of(self, options: dict[str, Any], dest: bytes) -> Settings:
        """Return what a target is told; raises the errors of ``add_target`` for its options."""
        excluded_too = bool(options.get("delete_excluded"))
        delete = excluded_too or bool(options.get("delete"))
        return {
            "dest": dest,
            "delete": delete,
            "rules": [] if excluded_too else self._rules,
            "asks": delete and not excluded_too and self._accept() is not None,
            "dry_run": bool(options.get("dry_run")),
            "expanduser": bool(options.get("expanduser")),
            "modes": bool(options.get("modes", True)),
            "times": bool(options.get("times", True)),
            "owners": bool(options.get("owners")),
            "window_ns": _nanoseconds(options.get("modify_window", 0)),
            "mask": 0,
            "links": _checked_links(options.get("links", "as-is")),
            "partial": bool(options.get("partial")),
            "compress": bool(options.get("compress")),
            "most_per_s": _positive("bwlimit", options.get("bwlimit")),
            "max_files": None,
            "max_bytes": None,
            "is_bounded": False,
            "keeps_apart": self._keeps_apart,
        }

    def send(self, raises: bool = True) -> Result | None:
        """Send to all targets that were added since the last time; return the result.

        raises: whether to raise OSError if there are no targets, or to return None.
        Entries that could not be read or written are listed in the result, and the rest is sent.
        When a target fails altogether, the others are still served; then its error is raised:
        ``RSyncError``, ``RemoteError`` or an EOFError.  ``result`` has the rest.
        """
        from ._rsync.push import Run
        from ._rsync.result import Result

        if not self._targets:
            if raises:
                raise OSError("no targets, add_target() before each send()")
            return None
        targets, self._targets = self._targets, []
        self.result = Result([target.result for target in targets])
        try:
            Run(os.fsencode(self._sourcedir), targets, self._accept(), self._rules, self).execute()
        finally:
            for target in targets:
                target.channel.close()
                note("rsync", INFO, partial(_told, self._sourcedir, target), target.gateway.id)
        for target in targets:
            if target.result.error is not None:
                raise target.result.error
        return self.result

    @staticmethod
    def pull(
        gateway: Gateway,
        remote_dir: str | os.PathLike[str],
        local_dir: str | os.PathLike[str],
        *,
        delete: bool = False,
        delete_excluded: bool = False,
        dry_run: bool = False,
        modes: bool = True,
        times: bool = True,
        owners: bool = False,
        modify_window: float = 0,
        partial: bool = False,
        compress: bool = False,
        bwlimit: float | None = None,
        mask: int = 0o022,
        links: str = "inside",
        max_files: int | None = None,
        max_bytes: int | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
        rules: Iterable[str | Rule] = (),
    ) -> TargetResult:
        """Copy a file or a directory tree from a worker to this machine; return the result.

        remote_dir, local_dir: like the source and the target of ``send``.
        delete, delete_excluded, dry_run, modes, times, owners, modify_window, partial, compress,
            bwlimit: like the options of ``add_target``.
        mask: bits to drop from modes; 0 keeps modes as they are.
        links: which links are made: those that lead "inside" the tree, all "as-is", or "none".
        max_files, max_bytes: how many entries there may be, and how many bytes all files together
            may have; None for any number, but without max_bytes no file larger than the whole
            file system here.
        timeout: seconds that the whole copy may take; None for any time.
        progress, rules: as for ``RSync``; the former is called in this thread.
        Nothing outside of ``local_dir`` is touched, whatever the worker says.  Raises
        ``RSyncError`` if the source does not exist, if nothing more can be written here, if there
        is more than was allowed, or if the worker breaks the protocol; ``RemoteError`` or EOFError
        if it fails; ValueError for a path that begins with "~", and for other values of ``links``.
        """
        gateway.refuse_blocking()
        _refuse_home(local_dir)
        _refuse_home(remote_dir)
        from ._rsync.pull import pull  # most programs never need it

        options = pull_options(
            gateway, delete=delete, delete_excluded=delete_excluded, dry_run=dry_run,
            modes=modes, times=times, owners=owners, modify_window=modify_window, partial=partial,
            compress=compress, bwlimit=bwlimit, mask=mask, links=links, max_files=max_files,
            max_bytes=max_bytes,
        )  # fmt: skip
        return pull(gateway, remote_dir, local_dir, options, _parsed(rules), progress, timeout)

    def _accept(self) -> Callable[[bytes], bool] | None:
        if getattr(self.filter, "__func__", None) is RSync.filter:
            return None  # saves a call for each entry
        return lambda path: self.filter(os.path.join(self._sourcedir, os.fsdecode(path)))

    def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
        """Report that a file is being sent; meant to be overridden."""
        if self._verbose:
            from ._rsync.result import print_line

            print_line(f"{gateway} <= {modified_rel_path}")

    # reports of a run

    def on_sending(self, target: Target, paths: Sequence[bytes]) -> None:
        report = self._report_send_file
        if self._verbose or getattr(report, "__func__", None) is not RSync._report_send_file:
            for path in paths:
                report(target.gateway, os.fsdecode(path))

    def on_list(self, target: Target, total: int) -> None:
        if self._callback is not None:
            self._callback("list", total, target.channel)

    def on_acks(self, target: Target, sizes: Sequence[int]) -> None:
        if self._callback is not None:
            for size in sizes:
                self._callback("ack", size, target.channel)

    def on_skipped(self, target: Target, skipped: Skipped) -> None:
        if self._verbose:
            from ._rsync.result import print_line

            print_line(f"{target.gateway} skipped {skipped.path}: {skipped.reason}")

    def on_finished(self, target: Target) -> None:
        if target.finished is not None:
            target.finished()

    def on_progress(self, total: int, done: int, current: str) -> None:
        if self._progress is not None:
            self._progress(total, done, current)
