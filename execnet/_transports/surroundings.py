"""The folder and the environment that a command is run in, kept for when it is run again.

A relative ``ssh_config=``, ``DOCKER_HOST`` or ``SSH_AUTH_SOCK`` decide where a command leads to and
whether it gets in.  So one that leads to the same worker again is run as the first one was,
whatever the program has changed since.  Start at ``Surroundings``.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .table import Command

AGENT = "SSH_AUTH_SOCK"
# Variables that say where a host is, and where programs find what they need to log in there.  Their
# values are paths, names and addresses.  Those that may be secrets themselves are not among them.
WRITTEN = (
    *("PATH", "HOME", "USER", "LOGNAME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
    *(AGENT, "KRB5CCNAME", "KRB5_CONFIG"),
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS"),
    *("DOCKER_TLS_VERIFY", "DOCKER_API_VERSION"),
    *("CONTAINER_HOST", "CONTAINER_CONNECTION", "CONTAINER_SSHKEY", "CONTAINERS_CONF"),
    *("KUBECONFIG", "KUBE_CONTEXT", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("CLOUDSDK_CONFIG", "CLOUDSDK_ACTIVE_CONFIG_NAME", "AZURE_CONFIG_DIR"),
    *("LXD_CONF", "LXD_DIR", "VAGRANT_HOME", "VAGRANT_CWD", "VAGRANT_DOTFILE_PATH"),
    *("VAGRANT_VAGRANTFILE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)


class Surroundings:
    """A folder, None if it is gone, and an environment; nothing changes them."""

    def __init__(self, folder: str | None, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = dict(env)

    def put_around(self, command: Command) -> Command:
        """Have a command run in them; return it.  A folder that is gone is left out."""
        command.env = self.env
        command.folder = self.folder if self.folder and os.path.isdir(self.folder) else None
        return command

    def for_record(self) -> dict[str, Any]:
        """Return what a later program needs of them, and may find in a file: no secrets.

        A variable that was not set is None.
        """
        found = {name: self.env.get(name) for name in WRITTEN}
        kept = {name: text for name, text in found.items() if not _may_be_secret(name, text or "")}
        return {"cwd": self.folder, "env": kept}


def here() -> Surroundings:
    """Return those of this process, as they are now."""
    try:
        folder = os.getcwd()
    except OSError:  # it is gone
        folder = None
    return Surroundings(folder, os.environ)


def of_record(told: Mapping[str, Any]) -> Surroundings:
    """Return those of a record, in which this process's environment stands for what is not there.

    An agent that has ended is replaced by this process's.
    """
    env = dict(os.environ)
    for name, text in told.get("env", {}).items():
        if name == AGENT and not (text and os.path.exists(text)):
            continue
        if text is None:
            env.pop(name, None)
        else:
            env[name] = text
    return Surroundings(told.get("cwd"), env)


def _may_be_secret(name: str, text: str) -> bool:
    """Whether an address has a password, or that of a proxy a user, which may be a token."""
    if name.lower().endswith("_proxy"):
        return "@" in text
    return re.match(r"\w+://[^/@]*:[^@]*@", text) is not None
