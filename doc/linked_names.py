"""Sphinx extension: code names in prose become links, and the reference is complete.

A literal such as ``Group.terminate(5)``, ``gateway.exit()``, ``WorkerDied`` or ``grace=`` leads to
its entry in the reference. What is public and has no entry is a warning, which fails the build.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from docutils import nodes
from public_names import AIO, public_names
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from execnet import gateway
from execnet._specs import KEYS

logger = logging.getLogger(__name__)

CODE_NAME = re.compile(r"([A-Za-z_][\w.]*)(?:\(.*\))?$")
SPEC_KEY = re.compile(r"([a-z_]+|env:)(?:=|NAME|$)")
SPECS, SPEC_KEYS_CLASS = "specs", "keys"
REFERENCE = "reference"
# A page about classes with the names of those for threads.
AIO_PAGE = "asyncio"

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


def aio_targets() -> dict[str, str]:
    """Return what the page about asyncio means by names, as ``targets_of`` does."""
    targets = {}
    full_names = [name for name in public_names() if name.startswith(f"{AIO}.")]
    for full in full_names:
        short = full.removeprefix(f"{AIO}.")
        kind, _, member = short.partition(".")
        targets[short] = full
        targets |= {f"{name}.{member}": full for name, meant in VARIABLES.items() if meant == kind}
    meant = {name: f"{AIO}.{of}" for name, of in MEANT.items()}
    return targets | {name: full for name, full in meant.items() if full in full_names}


def add_anchors(app: Any, doctree: Any) -> None:
    """Give each row of the table of spec keys an id, and each entry that is not in the index."""
    if app.env.docname == REFERENCE:
        for signature in doctree.findall(addnodes.desc_signature):
            if not signature["ids"]:
                signature["ids"].append(f"{signature['module']}.{signature['fullname']}")
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
    if docname == AIO_PAGE:
        targets.update(aio_targets())
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
            full = targets[name[1]]
            place, anchor = REFERENCE, full
            if full in objects:
                place, anchor = objects[full].docname, objects[full].node_id
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


def skip_internal(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Keep names out of the reference that no program should use; None: as autodoc thinks."""
    return True if name in gateway._INTERNAL else None


def check_completeness(app: Any, env: Any) -> None:
    entries = set(env.domains["py"].objects)
    for signature in env.get_doctree(REFERENCE).findall(addnodes.desc_signature):
        entries.update(signature["ids"])
    for name in public_names():
        if name not in entries:
            logger.warning("%s has no entry in the reference", name)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("doctree-read", add_anchors)
    app.connect("doctree-resolved", link_names)
    app.connect("env-check-consistency", check_completeness)
    return {"parallel_read_safe": True}
