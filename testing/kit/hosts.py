"""A host of a test's own, which has nothing: another user's empty home, no network, small disks.

It is a mount and a network namespace, so that nothing stays of it; only root can make one.
``sshd -i`` runs in it, and ssh reaches that through a pipe: no other link leads there.
Start at ``Host``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from services import common_python, need

USER, UID = "execnet-guest", 54321

# Runs in namespaces of its own, before sshd does.
ENTER = """\
set -e
mount --make-rprivate /
mount --bind {folder}/passwd /etc/passwd
ip link set lo up
{mounts}
exec {sshd} -i -e -f {folder}/sshd_config
"""
SERVER = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
CLIENT = """\
Host guest
HostName guest
User {user}
IdentityFile {folder}/user_key
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
BatchMode yes
ProxyCommand unshare --mount --net sh {folder}/enter 2>/dev/null
"""


class Host:
    """A host where ``user`` has an empty ``home``; ``spec`` leads there.

    mounts: commands that run in it first, as root; ``$HOME`` is that home.
    """

    def __init__(self, folder: Path, mounts: str = "") -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can make namespaces, and only on Linux")
        for name in "unshare", "ip":
            need(name, "util-linux and iproute2")
        sshd, keygen = need("sshd", "openssh-server"), need("ssh-keygen", "openssh-client")
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # where its unprivileged half is locked up
        folder.chmod(0o711)
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        for name in "host_key", "user_key":
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        (folder / "user_key.pub").chmod(0o644)
        known = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"guest {known}")
        line = f"{USER}:*:{UID}:{UID}::{self.home}:/bin/sh\n"
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + line)
        (folder / "passwd").chmod(0o644)
        words = {"folder": folder, "sshd": shutil.which(sshd), "user": USER}
        first = f"HOME={shlex.quote(str(self.home))}\n{mounts}"
        (folder / "enter").write_text(ENTER.format(**words, mounts=first))
        (folder / "sshd_config").write_text(SERVER.format(**words))
        config = folder / "ssh_config"
        config.write_text(CLIENT.format(**words))
        self.spec = f"ssh=guest//ssh_config={config}//python={common_python()}"
