"""Sphinx extension: code names in prose become links, and the reference is complete.

A literal such as ``Group.terminate(5)``, ``gateway.exit()``, ``WorkerDied`` or ``grace=`` leads to
its entry in the reference. What is public and has no entry is a warning, which fails the build.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import execnet
from execnet import service, xdeploy
from execnet._specs import KEYS

logger = logging.getLogger(__name__)

CODE_NAME = re.compile(r"([A-Za-z_][\w.]*)(?:\(.*\))?$")
SPEC_KEY = re.compile(r"([a-z_]+|env:)(?:=|NAME|$)")
SPECS, SPEC_KEYS_CLASS = "specs", "keys"

# What the pages call objects of these classes.
VARIABLES = {
    "channel": "Channel",
    "channels": "MultiChannel",
    "gateway": "Gateway",
    "group": "Group",
}
# Which of several members of one name is meant where nothing else is said.
MEANT = {
    "close": "Channel.close",
    "makegateway": "makegateway",
    "receive": "Channel.receive",
    "remote_exec": "Gateway.remote_exec",
    "send": "Channel.send",
    "set_execmodel": "set_execmodel",
    "submit": "Gateway.submit",
    "waitclose": "Channel.waitclose",
}
# These say something else in prose, alone as they are.
WORDS = {
    "execmodel", "filter", "find", "key=value", "map", "module", "next", "once", "shutdown",
    "signal", "state", "status", "stop",
}  # fmt: skip
# No underscore, and yet only for modules of the package: what its parts ask of each other.
INTERNAL = {
    *[f"execnet.Gateway.{name}" for name in ("knows_via", "noise", "post_first_line")],
    *[
        f"execnet.RSync.on_{event}"
        for event in ("acks", "finished", "list", "progress", "sending", "skipped")
    ],
    "execnet.xdeploy.Sync.start",
}


def public_names() -> list[str]:
    """Return the full names of all that a program may use, with the members of classes."""
    homes = [("execnet", execnet, execnet.__all__)]
    homes += [(module.__name__, module, module.__all__) for module in (service, xdeploy)]
    names = []
    for home, module, members in homes:
        for name in members:
            if name.startswith("__") or (home != "execnet" and name in execnet.__all__):
                continue
            full, value = f"{home}.{name}", getattr(module, name)
            names.append(full)
            if inspect.isclass(value) and not issubclass(value, Exception):
                names += [
                    f"{full}.{member}"
                    for member in dir(value)
                    if not member.startswith("_")
                    and not inspect.isclass(inspect.getattr_static(value, member))
                ]
    return [name for name in names if name not in INTERNAL]


def targets_of(env: Any) -> dict[str, str]:
    """Return what may stand in prose, with the full name that it leads to."""
    full_names = [name for name in env.domains["py"].objects if name.startswith("execnet.")]
    last = Counter(name.rpartition(".")[2] for name in full_names)
    targets = {}
    for full in full_names:
        name = full.rpartition(".")[2]
        if last[name] == 1 and name not in WORDS:
            targets[name] = full
    for full in full_names:
        targets[full] = full
        short = full.removeprefix("execnet.")
        if "." in short:
            targets[short] = full
    for name, meant in MEANT.items():
        targets[name] = f"execnet.{meant}"
    for variable, kind in VARIABLES.items():
        for full in full_names:
            if full.startswith(f"execnet.{kind}."):
                targets[f"{variable}.{full.rpartition('.')[2]}"] = full
    return targets


def add_anchors(app: Any, doctree: Any) -> None:
    """Give each row of the table of spec keys an id."""
    if app.env.docname != SPECS:
        return
    for table in doctree.findall(nodes.table):
        if SPEC_KEYS_CLASS in table["classes"]:
            for row in table.findall(nodes.row):
                key = row.children[0].astext().removesuffix("NAME")
                if key.removesuffix(":") in {name.removesuffix(":NAME") for name in KEYS}:
                    row["ids"].append(nodes.make_id(f"key-{key}"))


def link_names(app: Any, doctree: Any, docname: str) -> None:
    targets = targets_of(app.env)
    keys = {key.removesuffix("NAME") for key in KEYS}
    objects = app.env.domains["py"].objects
    for literal in list(doctree.findall(nodes.literal)):
        if any(isinstance(node, nodes.reference | nodes.title) for node in ancestors(literal)):
            continue
        text = literal.astext()
        if text in WORDS:
            continue
        name, key = CODE_NAME.match(text), SPEC_KEY.match(text)
        if name and name[1] in targets:
            entry = objects[targets[name[1]]]
            place, anchor = entry.docname, entry.node_id
        elif key and key[1] in keys and ("=" in text or key[1] == "env:") and "//" not in text:
            place, anchor = SPECS, nodes.make_id(f"key-{key[1]}")
        else:
            continue
        if place == docname and place == SPECS and in_keys(literal):
            continue
        link = make_refnode(app.builder, docname, place, anchor, [literal.deepcopy()])
        literal.replace_self(link)


def ancestors(node: Any) -> Any:
    while node := node.parent:
        yield node


def in_keys(node: Any) -> bool:
    return any(SPEC_KEYS_CLASS in getattr(above, "attributes", {}).get("classes", [])
               for above in ancestors(node))  # fmt: skip


def check_completeness(app: Any, env: Any) -> None:
    for name in public_names():
        if name not in env.domains["py"].objects:
            logger.warning("%s has no entry in the reference", name)


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", add_anchors)
    app.connect("doctree-resolved", link_names)
    app.connect("env-check-consistency", check_completeness)
    return {"parallel_read_safe": True}
