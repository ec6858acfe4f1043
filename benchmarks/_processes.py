"""One measuring program: started, given a time limit, and ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class ProgramFailed(Exception):
    """A program did not start, ended badly, took too long or printed no result, in one line."""


def run_program(
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    timeout_s: float,
    place: Path | None = None,
) -> dict[str, Any]:
    """Run ``command`` with the environment ``variables`` and return what it printed as JSON.

    It has a process group of its own, of which nothing is left when this returns or raises.
    place: where its empty folder is made; in memory, if the system offers that, unless given.
    Raises ProgramFailed.
    """
    # An empty folder, because interpreters import from the one they run in, and the one that
    # we run in has an execnet that a peer's workers would take for theirs.
    with tempfile.TemporaryDirectory(dir=place or _memory()) as folder:
        output, errors, cwd = (Path(folder, name) for name in ("output", "errors", "cwd"))
        cwd.mkdir()
        # Files, not pipes: what the program left running could hold a pipe open.
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            process = _start(command, variables, cwd, stdout, stderr)
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise ProgramFailed(f"no result within {timeout_s:g} s") from None
            finally:
                _end_group(process)
        if code:
            raise ProgramFailed(f"{_ending(code)}: {_last_line(errors)}")
        return _parse(_last_line(output))


def _memory() -> str | None:
    """Return a folder that is kept in memory, if there is one, so that no disk is measured."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _start(
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env=variables,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramFailed(f"did not start: {error}") from error


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"ended by signal {-code}"


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "(no output)"


def _parse(line: str) -> dict[str, Any]:
    try:
        result = json.loads(line)
        samples = [float(sample) for sample in result["samples"]]
    except (ValueError, TypeError, KeyError):
        raise ProgramFailed(f"printed no result: {line[:100]}") from None
    if not samples:
        raise ProgramFailed("printed no samples")
    return {**result, "samples": samples}
