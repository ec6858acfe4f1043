"""An sshd of one's own on loopback, with its own keys, and a client's config for it.

Compression is refused, and there is one cipher, so that all who use it do the same work; unless
everybody's own defaults are what is to be compared.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CIPHER = "chacha20-poly1305@openssh.com"  # what OpenSSH agrees on by itself
HOST = "loop"

SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
MaxStartups 100
"""
CLIENT = """\
Host {host}
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {folder}/user_key
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
BatchMode yes
"""
SAME_WORK = """\
Compression no
Ciphers {cipher}
"""


@contextmanager
def sshd(folder: Path, defaults: bool = False) -> Iterator[Path]:
    """Run an sshd; yield the config with which ``ssh -F CONFIG loop`` comes in."""
    more = "" if defaults else SAME_WORK
    port = free_port()
    for name in "host_key", "user_key":
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    words = {"port": port, "folder": folder, "cipher": CIPHER, "host": HOST}
    (folder / "sshd_config").write_text((SERVER + more).format(**words))
    config = folder / "ssh_config"
    config.write_text((CLIENT + more).format(**words, user=getpass.getuser()))
    process = start(folder / "sshd_config")
    try:
        yield config
    finally:
        process.terminate()
        process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start(config: Path) -> subprocess.Popen[str]:
    if os.getuid() == 0:  # where its unprivileged half is locked up
        os.makedirs("/run/sshd", 0o755, exist_ok=True)
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
    if program is None:
        sys.exit("there is no sshd here")
    command = [program, "-D", "-e", "-f", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "listening on" not in said:
        line = process.stderr.readline()
        if not line:
            sys.exit(f"sshd does not start: {said}")
        said += line
    return process
