"""RSync for long: beside the program rsync, with seeded faults, and while links are swapped.

It runs the tests that do a little of each with larger numbers.  The exit status is 1 if any fails.
"""

from __future__ import annotations

import argparse
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "testing" / "rsync"
# part -> its file, and the variable that says how many
PARTS = {
    "trees": ("test_rsync_differential.py", "EXECNET_RSYNC_SEEDS"),
    "faults": ("test_rsync_seeded.py", "EXECNET_FAULT_SEEDS"),
    "swaps": ("test_rsync_swapped.py", "EXECNET_SWAP_ROUNDS"),
}


def run_part(part: str, count: int, user: str | None) -> bool:
    """Run one part, as another user if that is wanted; tell whether it held."""
    name, variable = PARTS[part]
    identity: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if user is not None:
            entry = pwd.getpwnam(user)
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "timeout=0",
        ]
        command += [f"--basetemp={folder}/trees", str(TESTS / name)]
        variables = {**os.environ, variable: str(count), "HOME": folder}
        print(f"{part}: {count}, as {user or 'this user'}", flush=True)
        return subprocess.run(command, cwd=ROOT, env=variables, **identity).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sync", description=__doc__)
    parser.add_argument("--trees", type=int, default=2000, help="compared with rsync (2000)")
    parser.add_argument("--faults", type=int, default=2000, help="seeded faults (2000)")
    parser.add_argument("--swaps", type=int, default=5000, help="rounds of each attack (5000)")
    parser.add_argument("--user", help="run as this user, who must be able to read what is here")
    options = vars(parser.parse_args())
    user = options.pop("user")
    held = [run_part(part, count, user) for part, count in options.items() if count]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
