"""Many workers over ssh, against an sshd with its defaults: all come up, nothing of them stays.

Each round starts workers on one address, and some on each of several addresses, all of this
machine; ``--share`` has those of an address share a login.  The exit status is 1 if something
failed or stayed.  Needs OpenSSH's client and server.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import execnet

BOUND_S = 60
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class Sshd:
    """An sshd on several addresses of the loopback interface, that lets in this user."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        with socket.socket() as listener:
            listener.bind((addresses[0], 0))
            port = listener.getsockname()[1]
        for name in "host_key", "user_key":
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        key = (folder / "host_key.pub").read_text()
        known = [f"[{address}]:{port} {key}" for address in addresses]
        (folder / "known_hosts").write_text("".join(known))
        listens = [f"ListenAddress {address}" for address in addresses]
        server = [
            *listens,
            f"Port {port}\nHostKey {folder}/host_key",
            f"AuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nStrictModes no\nUsePAM no",
        ]
        (folder / "sshd_config").write_text("\n".join(server) + "\n")
        client = [
            f"Port {port}\nUser {getpass.getuser()}\nIdentityFile {folder}/user_key",
            f"IdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {folder}/known_hosts",
            "BatchMode yes\nLogLevel ERROR",
        ]
        self.ssh_config = folder / "ssh_config"
        self.ssh_config.write_text("\n".join(client) + "\n")
        if os.getuid() == 0:  # where its unprivileged half is locked up
            os.makedirs("/run/sshd", 0o755, exist_ok=True)
        program = shutil.which("sshd") or shutil.which("sshd", path=PATH) or "sshd"
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=self._log
        )
        wait_until(lambda: (folder / "log").read_text().count("listening on") == len(addresses))

    def sessions(self) -> int:
        """Return how many connections it serves."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return len(path.read_text().split())

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(BOUND_S)
        self._log.close()


def wait_until(condition: object) -> bool:
    """Return whether a condition came true within a minute."""
    deadline = time.monotonic() + BOUND_S
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def what_stays() -> set[str]:
    """Return the descriptors, threads and child processes that there are."""
    children = Path("/proc/self/task").glob("*/children")
    processes = {f"process {pid}" for path in children for pid in path.read_text().split()}
    threads = {f"thread {thread.name}" for thread in threading.enumerate()}
    threads.discard("thread execnet-ends")  # stays while there are children, as the sshd is
    return processes | threads | {f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")}


def run_round(specs: list[str]) -> tuple[float, float]:
    """Start all, have each answer, end them; return the seconds of both."""
    begun = time.monotonic()
    with execnet.Group(specs) as group:
        up_s = time.monotonic() - begun
        pids = group.remote_exec("import os; channel.send(os.getpid())").receive_each()
        assert len(set(pids)) == len(specs)
        begun = time.monotonic()
    return up_s, time.monotonic() - begun


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="how often (10)")
    parser.add_argument("--workers", type=int, default=64, help="on one address (64)")
    parser.add_argument("--addresses", type=int, default=16, help="further ones (16)")
    parser.add_argument("--each", type=int, default=4, help="workers on each of those (4)")
    parser.add_argument("--share", action="store_true", help="one login for each address")
    options = parser.parse_args()
    end = f"//python={shutil.which('python3', path=PATH)}" + (
        "//share=yes" if options.share else ""
    )
    addresses = [f"127.0.0.{number}" for number in range(2, 2 + max(1, options.addresses))]
    with tempfile.TemporaryDirectory() as folder:
        sshd = Sshd(Path(folder), addresses)
        try:
            many = [f"ssh={addresses[0]}//ssh_config={sshd.ssh_config}{end}"] * options.workers
            spread = [
                f"ssh={address}//ssh_config={sshd.ssh_config}{end}"
                for address in addresses[: options.addresses]
                for _ in range(options.each)
            ]
            run_round(many[:1])  # what a process opens once
            return run_rounds([many, spread], options.rounds, sshd)
        finally:
            sshd.stop()


def run_rounds(kinds: list[list[str]], rounds: int, sshd: Sshd) -> int:
    """Run all kinds so often; return the exit status."""
    # Nothing of what a process opens once is a thread, but that of its heartbeat ends late.
    wait_until(lambda: not sshd.sessions() and threading.active_count() == 1)
    before, failed = what_stays(), 0
    for number in range(rounds):
        for specs in kinds:
            name = f"round {number + 1}: {len(specs)} workers on {len(set(specs))} addresses"
            try:
                up_s, down_s = run_round(specs)
                print(f"{name}: up in {up_s:.1f} s, gone in {down_s:.1f} s", flush=True)
            except (execnet.BootstrapError, EOFError, AssertionError) as error:
                failed += 1
                print(f"{name}: {error}", flush=True)
            if not wait_until(lambda: what_stays() == before and not sshd.sessions()):
                failed += 1
                print(
                    f"{name}: left behind: {what_stays()}, not {before}; {sshd.sessions()} sessions"
                )
    print(f"{failed} failed" if failed else "none failed, nothing stayed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
