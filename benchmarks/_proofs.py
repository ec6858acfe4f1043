"""What is not compared with peers but shown or not: faults, hostile peers, interrupts, and others.

``python -m benchmarks NAME [OPTIONS]`` runs one of ``PROOFS`` in a process of its own, whose exit
status says whether it held.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROOFS = {
    "aio": (
        "asyncio: 100,000 cancelled receives, 1,000 idle gateways in one loop",
        "benchmarks/proofs/aio.py",
    ),
    "compress": (
        "compress=yes beside ssh -C over a link of 10 Mbit/s: no slower",
        "benchmarks/proofs/compress.py",
    ),
    "deploy": (
        "50 seeded kills while an environment is made, 20 times two coordinators at once",
        "testing/kit/deploy_faults.py",
    ),
    "environments": (
        "an environment on each Python here, by each tool that can; the index is asked",
        "testing/kit/deploy_pythons.py",
    ),
    "factory": (
        "a second ssh gateway through a warm factory takes a fifth of the time of a fresh one",
        "benchmarks/proofs/factory.py",
    ),
    "faults": ("10,000 seeded faults; no call hangs, nothing is left", "testing/kit/faults.py"),
    "fuzz": ("an hour of coverage-guided fuzzing of each decoder", "benchmarks/proofs/fuzz.py"),
    "hostile": (
        "10,000 seeded sessions of workers, clients, servers and users that mean harm",
        "testing/kit/hostile.py",
    ),
    "interrupts": (
        "20,000 seeded interrupts; nothing is lost, doubled or stuck",
        "benchmarks/proofs/interrupts.py",
    ),
    "logins": ("64 workers over ssh at once, ten times", "benchmarks/proofs/logins.py"),
    "many": (
        "1,000 gateways over sockets: memory, threads, descriptors, a broadcast, the end",
        "benchmarks/proofs/many.py",
    ),
    "resume": (
        "1,000 cuts of a connection while 64 MiB go each way; nothing is lost or doubled",
        "benchmarks/proofs/resume.py",
    ),
    "soak": ("2,000 gateways in one process, 100 at a time", "benchmarks/proofs/soak.py"),
    "sync": (
        "RSync: 2,000 trees beside the program rsync, 2,000 seeded faults, 5,000 rounds of swaps",
        "benchmarks/proofs/sync.py",
    ),
    "tree": (
        "64 workers behind 8 hops, over slow links, as a tree and as a flat group",
        "benchmarks/proofs/tree.py",
    ),
    "window": ("2 GB to a slow reader stay out of memory", "benchmarks/proofs/window.py"),
}
# In front of the options, which may say otherwise.
ALWAYS = {name: ["--count", "10000"] for name in ("faults", "hostile")}


def run_proof(name: str, options: list[str]) -> int:
    """Run a proof with its options and return its exit status."""
    script = ROOT / PROOFS[name][1]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *ALWAYS.get(name, []), *options]
    return subprocess.run(command, env=variables, check=False).returncode


def list_proofs() -> str:
    """Return a line for each."""
    return "\n".join(f"{name}: {title}" for name, (title, _) in PROOFS.items())
