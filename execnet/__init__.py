"""Start Python interpreters anywhere, run code in them, talk to it through channels.

    import execnet

    with execnet.Group(["popen", "ssh=user@host"]) as group:
        for gateway in group:
            channel = gateway.remote_exec("import sys; channel.send(sys.version)")
            print(gateway.id, channel.receive())

Nothing has to be installed on the other host but a Python, 2.7 or newer.

Names are loaded when they are first used, so that ``import execnet`` costs little and a
worker, which imports ``execnet.gateway_base``, loads that alone.

To read the code, start with the docstrings of ``gateway_base``, which both ends run, ``gateway``
and ``multi``.  Modules without an underscore are public.  What runs in workers is in
``gateway_base``, in ``_features``, and in whatever is named ``far`` or ``far_*``.
"""

from __future__ import annotations

__version__ = "3.0.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._deprecated import PopenGateway, SocketGateway, SshGateway
    from ._errors import (
        AuthenticationError,
        SecurityWarning,
        SpecWarning,
        WorkerDied,
        WorkerGone,
    )
    from ._frozen import freeze_support
    from .gateway import Gateway
    from .gateway_base import (
        Channel,
        DataFormatError,
        DeadlockError,
        DumpError,
        ExecnetError,
        LoadError,
        ProtocolError,
        RemoteError,
        TimeoutError,
        dump,
        dumps,
        load,
        loads,
    )
    from .gateway_io import BootstrapError, HostNotFound
    from .multi import Group, MultiChannel, default_group, makegateway, set_execmodel
    from .rsync import RSync
    from .service import ChannelGateway
    from .xspec import XSpec

__all__ = [
    "AuthenticationError", "BootstrapError", "Channel", "ChannelGateway", "DataFormatError",
    "DeadlockError", "DumpError", "ExecnetError", "Gateway", "Group", "HostNotFound", "LoadError",
    "MultiChannel", "PopenGateway", "ProtocolError", "RSync", "RemoteError", "SecurityWarning",
    "SocketGateway", "SpecWarning", "SshGateway", "TimeoutError", "WorkerDied", "WorkerGone",
    "XSpec", "__version__",
    "default_group", "dump", "dumps", "freeze_support", "load", "loads", "makegateway",
    "set_execmodel",
]  # fmt: skip

_HOMES = {
    "_cli.magic": ["load_ipython_extension", "unload_ipython_extension"],  # for "%load_ext"
    "_deprecated": ["PopenGateway", "SocketGateway", "SshGateway"],
    "_errors": [
        "AuthenticationError", "SecurityWarning", "SpecWarning", "WorkerDied", "WorkerGone",
    ],
    "_frozen": ["freeze_support"],
    "gateway": ["Gateway"],
    "gateway_base": [
        "Channel", "DataFormatError", "DeadlockError", "DumpError", "ExecnetError", "LoadError",
        "ProtocolError", "RemoteError", "TimeoutError", "dump", "dumps", "load", "loads",
    ],
    "gateway_io": ["BootstrapError", "HostNotFound"],
    "multi": ["Group", "MultiChannel", "default_group", "makegateway", "set_execmodel"],
    "rsync": ["RSync"],
    "service": ["ChannelGateway"],
    "xspec": ["XSpec"],
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = frozenset(
    [
        *_HOMES,
        "aio",
        "codecs",
        "gateway_bootstrap",
        "gateway_socket",
        "rsync_remote",
        "script",
        "service",
        "xdeploy",
    ]
)


def __getattr__(name: str) -> Any:
    from importlib import import_module  # which a worker never needs

    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
