"""Lists and prunes what is kept on the far side.  Start at ``kept``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._ship.parts import run
from ..gateway_base import RemoteError
from .errors import DeployError, hidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from .far.places import KeptRequest

DAY_S = 86400.0


@dataclass(frozen=True)
class Kept:
    """An environment, layer, tree, fetched Python or cache of installers on the far side.

    kind: "venvs", "layers", "trees", "pythons" or "caches".  state: "used" by a process, or by an
    environment, "free", "incomplete", "replaced" by a newer one, or "unknown" where the file system
    has no locks.  used: when it was used last, in seconds since the epoch by the clock there.
    bytes: how much it takes up.
    """

    kind: str
    name: str
    path: str
    state: str
    python: str
    tool: str
    requirements: str
    used: float
    bytes: int


def kept(gateway: Gateway, root: str | None = None) -> list[Kept]:
    """Return what is kept there.  Raises ``DeployError`` if the worker can't say."""
    return _asked(gateway, {"prune": False, "root": root or ""})


def prune(
    gateway: Gateway,
    unused_days: float = 30.0,
    names: Iterable[str] = (),
    dry_run: bool = False,
    root: str | None = None,
) -> list[Kept]:
    """Remove what nobody uses, and return the entries removed.

    That is everything not used for this many days, not complete, or replaced.
    names: only of these environments and projects; of all if empty.  dry_run: only report.
    Raises ``DeployError`` if the worker can't do that.
    """
    request: KeptRequest = {
        "prune": True, "root": root or "", "unused_s": unused_days * DAY_S,
        "names": list(names), "dry_run": dry_run,
    }  # fmt: skip
    return _asked(gateway, request)


def _asked(gateway: Gateway, request: KeptRequest) -> list[Kept]:
    try:
        channel = run(gateway, "_xdeploy.far.kept")
        channel.send(request)
        return [_kept(item) for item in channel]
    except (RemoteError, EOFError) as exc:
        raise DeployError(f"{gateway.id} did not list what is kept: {exc}", "listing") from exc
    except (TypeError, ValueError, LookupError) as exc:
        raise DeployError(f"{gateway.id} broke the protocol: {exc}", "listing") from exc


def _kept(item: Any) -> Kept:
    texts = {
        name: hidden(str(item[name]))
        for name in ("kind", "name", "path", "state", "python", "tool", "requirements")
    }
    return Kept(**texts, used=float(item["used"]), bytes=int(item["bytes"]))
