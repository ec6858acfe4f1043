"""Whether the index of packages can be reached from here.

Only a connection is tried, to the index or to the proxy on the way.  This file is shipped.
Start at ``reaches``.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import threading

from .quick import native

CONNECT_S = 3.0
LOOK_UP_S = 6.0
ADDRESS = re.compile(r"(https?)://(?:[^@/]*@)?(\[[0-9A-Fa-f:.]+\]|[^:/]+)(?::(\d+))?")


def reaches(index_url: str, default: str) -> bool:
    """Whether the index accepts a connection.

    index_url: the user's, or "".  default: the one to ask if nothing here names one; if it is ""
    as well, the index counts as reachable.
    """
    url = native(index_url) or _configured() or native(default)
    match = ADDRESS.match(url)
    if match is None:
        return True
    scheme, host, port = match.groups()
    proxy = ADDRESS.match(_proxy(scheme, host))
    if proxy is not None:
        scheme, host, port = proxy.groups()
    return _connects(host.strip("[]"), int(port or {"http": 80, "https": 443}[scheme]))


def _proxy(scheme: str, host: str) -> str:
    names = os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")
    if any(name.strip() and host.endswith(name.strip().lstrip("*.")) for name in names):
        return ""
    for name in (scheme + "_proxy", "all_proxy"):
        url = os.environ.get(name) or os.environ.get(name.upper()) or ""
        if url:
            return url if "://" in url else "http://" + url
    return ""


def _connects(host: str, port: int) -> bool:
    """Connect in a thread: looking up a name can take longer than anyone would wait."""
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
            found.append(True)
        except (EnvironmentError, ValueError):
            pass

    thread = threading.Thread(target=connect)
    thread.daemon = True
    thread.start()
    thread.join(LOOK_UP_S)
    return bool(found)


def _configured() -> str:
    """Return the address that variables and pip's files name here, "" for none."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name]
    home = os.path.expanduser("~")
    files = [
        os.environ.get("PIP_CONFIG_FILE", ""),
        os.path.join(sys.prefix, "pip.conf"),
        os.path.join(os.environ.get("XDG_CONFIG_HOME") or home + "/.config", "pip", "pip.conf"),
        os.path.join(home, ".pip", "pip.conf"),
        os.path.join("/etc", "xdg", "pip", "pip.conf"),
        os.path.join("/etc", "pip.conf"),
    ]
    for path in files:
        try:
            with io.open(path, encoding="utf-8") as file:
                found = re.search(r"^\s*index[-_]url\s*[=:]\s*(\S+)", file.read(), re.M)
        except (EnvironmentError, ValueError):
            continue
        if found:
            return str(native(found.group(1)))
    return ""
