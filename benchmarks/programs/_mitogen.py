"""Mitogen's broker and router, and interpreters that they start on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import mitogen.core
import mitogen.master


class Router:
    """What a mitogen program sets up once; ``stop`` ends all that was started through it."""

    def __init__(self) -> None:
        self.broker = mitogen.master.Broker()
        self.router = mitogen.master.Router(self.broker)

    def start(self, **options: object) -> mitogen.core.Context:
        """Return the context of a new interpreter, of the kind that runs this."""
        return self.router.local(python_path=sys.executable, **options)

    def start_by_ssh(self, host: str, config: Path) -> mitogen.core.Context:
        """The same, on a host that a config for ssh names."""
        return self.router.ssh(
            hostname=host,
            python_path=sys.executable,
            ssh_args=["-F", str(config)],
            check_host_keys="ignore",
            compression=False,
        )

    def stop(self) -> None:
        self.broker.shutdown()
        self.broker.join()
