"""The real ``uv``, from its wheel: installed once for all workers of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools import missing


def uv_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a uv; a skip, or in CI a failure, where it can't be installed."""
    import fcntl  # which Windows has not, nor are these tests for it

    base = factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = common / "uv"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "bin" / "uv").exists():
            _install(folder)
    return folder / "bin"


def _install(folder: Path) -> None:
    words = [
        "--quiet",
        "--retries",
        "1",
        "--disable-pip-version-check",
        "--no-compile",
        "--no-deps",
    ]
    words += ["--only-binary", ":all:", "--target", str(folder), "uv"]
    command = [sys.executable, "-m", "pip", "install", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as expired:
        missing(f"uv can't be installed: {expired}")
    if done.returncode:
        missing(f"uv can't be installed: {done.stderr}")
