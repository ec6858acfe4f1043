"""Patterns that select what is synchronised: those of rsync, and of ``.gitignore``.

Each becomes a regular expression, which either side can apply (``_rsync.far.rules``).  Start at
``parse_rules``; for the semantics see "FILTER RULES" in rsync(1), and gitignore(5).
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator

# (regular expression for a path, whether it is included, whether it applies to directories only)
Rule = tuple[bytes, bool, bool]

_WILD = re.compile(r"[*?[]")
_NEVER = "(?!)"
_MERGED_MAX = 16  # files in files; more will be one that merges itself
_GROUPS_MAX = 90  # old Pythons take 99 in one expression
_CLASSES = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \\t", "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~",
    "space": " \\t-\\r", "upper": "A-Z", "xdigit": "0-9a-fA-F",
}  # fmt: skip
_CLASS = re.compile(r"\[([!^]?)(]?(?:\[:\w*:]|\\.|[^]\\])*)]", re.DOTALL)
_ITEM = re.compile(r"\[:(\w*):]|\\?(.)(?:-\\?([^]]))?", re.DOTALL)
_RULE = re.compile(r"(exclude|include|merge|clear|[-+.!])(?:,?([-+]))?(?:[ _](.*))?", re.DOTALL)
_LONG = {"exclude": "-", "include": "+", "merge": ".", "clear": "!"}


def parse_rules(rules: Iterable[str | Rule]) -> list[Rule]:
    """Turn filter rules of rsync, such as "- *.o", "+ /keep/" and "merge FILE", into ours.

    Raises ValueError for text that is not a rule, or a rule that is not supported, and OSError for
    a file to be merged that cannot be read.
    """
    parsed: list[Rule] = []
    for rule in rules:
        if isinstance(rule, str):
            _add_rule(parsed, rule, [])
        else:
            parsed.append(rule)
    return parsed


def _add_rule(parsed: list[Rule], text: str, merged: list[str]) -> None:
    """Add what a rule says.  merged: the files that it is in, which merge each other."""
    parts = _parts_of(text)
    if parts is None:
        raise ValueError(f"not a rule, or one that is not supported: {text!r}")
    kind, only, rest = parts
    if kind == "!":
        parsed.clear()
    elif kind != ".":
        parsed += rules_of(rest, kind == "+")
    elif only is None:
        _merge(parsed, rest, merged)
    else:
        parsed += [rule for line in lines_of(rest) for rule in rules_of(line, only == "+")]


def _parts_of(text: str) -> tuple[str, str | None, str] | None:
    """Return (kind, modifier, rest) of a rule; None if it is none, or is not supported."""
    match = _RULE.fullmatch(text)
    kind, only, rest = match.groups() if match else ("", None, None)
    kind = _LONG.get(kind, kind)
    is_rule = not rest if kind == "!" else rest and (kind == "." or only is None)
    return (kind, only, rest or "") if match and is_rule else None


def _merge(parsed: list[Rule], path: str, merged: list[str]) -> None:
    """Add the rules in a file.

    The program rsync takes a ``.gitignore`` only if each line of it is a rule of its own; any other
    is read as git reads it.
    """
    if len(merged) == _MERGED_MAX:
        raise ValueError(f"too many files merge each other, the last one {path!r}")
    lines = list(lines_of(path))
    plain = [line for line in lines if _parts_of(line) is None]
    if plain and os.path.basename(path) == ".gitignore":
        parsed += list(_rules_of_gitignore(path, ""))[::-1]
    elif plain:
        advice = f"write '- {plain[0]}', or 'merge,- {path}' if each line is a pattern"
        raise ValueError(f"no rule, {plain[0]!r} in {path!r}: {advice}")
    else:
        for line in lines:
            _add_rule(parsed, line, [*merged, path])


def lines_of(path: str) -> Iterator[str]:
    """Yield the rules in a file: its lines without comments."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file.read().splitlines():
            if line and line[0] not in ";#":
                yield line


def pattern_rules(text: str, takes_part: bool) -> list[Rule]:
    """Return the rule of an ``--exclude`` or ``--include``, or of a line in a file of them."""
    if text[:2] in ("- ", "+ ") and text[2:]:
        return rules_of(text[2:], text[0] == "+")
    return rules_of(text, takes_part)


def rules_of(pattern: str, takes_part: bool) -> list[Rule]:
    """Return the rules for a pattern of rsync; ValueError if it is empty."""
    glob = os.fsencode(pattern).decode("latin-1")
    if not glob.strip("/"):
        raise ValueError(f"an empty pattern: {pattern!r}")
    is_for_directories = glob.endswith("/")
    glob = glob[:-1] if is_for_directories else glob
    is_wild = _WILD.search(glob) is not None
    is_with_content = glob.endswith("/***")  # a directory, and what is in it
    glob = glob[:-4] if is_with_content else glob
    is_anchored = glob.startswith("/")
    glob = glob[1:] if is_anchored else glob
    start = "" if is_anchored else "(?:.*/)?"
    if not is_anchored and glob.startswith("**/"):
        start, glob = "(?:.*/)?", glob[3:]
    expression = _translate(glob) if is_wild else _escape(glob)
    if is_with_content:
        content = _rule(start + expression + "/.*", takes_part, is_for_directories)
        return [_rule(start + expression, takes_part, True), content]
    return [_rule(start + expression, takes_part, is_for_directories)]


def _rule(expression: str, takes_part: bool, is_for_directories: bool) -> Rule:
    return rf"(?s){expression}\Z".encode("latin-1"), takes_part, is_for_directories


def _translate(glob: str, double: str = ".*", groups: int = 0) -> str:
    """Translate a shell pattern into a regular expression.

    double: what two asterisks match.  groups: how many there are in the expression before this.
    """
    parts: list[str] = []
    place = 0
    stars: list[int] = []  # where those with one or two asterisks are
    while place < len(glob):
        char = glob[place]
        if char == "*":
            stop = place + len(glob[place:]) - len(glob[place:].lstrip("*"))
            stars.append(len(parts))
            parts.append("[^/]*" if stop == place + 1 else double)
            place = stop
            continue
        if char == "[":
            match = _CLASS.match(glob, place)
            if match is None:
                return _NEVER
            parts.append(_translate_class(*match.groups()))
            place = match.end()
            continue
        if char == "\\" and place + 1 < len(glob):
            place += 1
        parts.append("[^/]" if char == "?" else _escape(glob[place]))
        place += 1
    for star, after in itertools.pairwise(stars):
        # What follows may as well be the first that fits, as the next one matches all that this
        # leaves.  If others were tried, a name that a hostile side makes up could take years.
        if parts[star] in ("[^/]*", parts[after]) and groups < _GROUPS_MAX:
            groups += 1
            parts[star] = "(?=(" + parts[star] + "?"
            parts[after - 1] += rf"))(?:\{groups})"
    return "".join(parts)


def _translate_class(negation: str, items: str) -> str:
    parts = []
    for name, first, last in _ITEM.findall(items):
        if name or not first:
            parts.append(_CLASSES.get(name, ""))
        elif not last:
            parts.append(_escape(first))
        elif first <= last:
            parts.append(f"{_escape(first)}-{_escape(last)}")
    if not "".join(parts):
        return "[^/]" if negation else _NEVER
    return f"(?!/)[{'^' if negation else ''}{''.join(parts)}]"


def _escape(text: str) -> str:
    return "".join(c if c.isalnum() or c in "/_" or ord(c) > 127 else "\\" + c for c in text)


# .gitignore


def gitignore_rules(root: str) -> list[Rule]:
    """Return rules that leave out what the ``.gitignore`` files in a tree ignore.

    The first rule that matches counts, so deeper files come first, and each from its last line up.
    Raises OSError for a file that cannot be read: what it leaves out may be secret.
    """
    from .far.rules import Rules

    found: list[tuple[int, list[Rule]]] = []
    rules = Rules([])
    for folder, folders, files in os.walk(root):
        here = os.path.relpath(folder, root)
        prefix = "" if here == "." else here.replace(os.sep, "/") + "/"
        if ".gitignore" in files:
            own = list(_rules_of_gitignore(os.path.join(folder, ".gitignore"), prefix))
            found.append((prefix.count("/"), own[::-1]))
            found.sort(key=lambda item: -item[0])
            rules = Rules([rule for _, part in found for rule in part])
        folders[:] = [name for name in folders if not rules.leaves_out(_path(prefix, name), True)]
    return [rule for _, part in found for rule in part]


def _path(prefix: str, name: str) -> bytes:
    return os.fsencode(prefix + name)


def _rules_of_gitignore(path: str, prefix: str) -> Iterator[Rule]:
    for line in _lines_of_gitignore(path):
        line = re.sub(r"(?<!\\) +$", "", line.removesuffix("\r"))
        takes_part = line.startswith("!")
        line = line[1:] if takes_part else line
        if line.strip("/") and not line.startswith("#"):
            yield _rule_of_gitignore(line, prefix, takes_part)


def _lines_of_gitignore(path: str) -> list[str]:
    """Return the lines of a file; none if it is a link to nothing, or no file at all."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would have to be waited for
            return []
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\n")
    except FileNotFoundError:
        return []


def _rule_of_gitignore(line: str, prefix: str, takes_part: bool) -> Rule:
    glob = os.fsencode(line).decode("latin-1")
    start = _escape(os.fsencode(prefix).decode("latin-1"))
    is_for_directories = glob.endswith("/")
    glob = glob[:-1] if is_for_directories else glob
    if "/" not in glob:
        start += "(?:.*/)?"
    glob = glob.removeprefix("/")
    end = ""
    while glob.startswith("**/"):
        start, glob = start + "(?:.*/)?", glob[3:]
    if glob.endswith("/**"):
        glob, end = glob[:-3], "/.*"
    middle, *parts = glob.split("/**/")
    middle = _translate(middle, "[^/]*")
    for number, part in enumerate(parts, 1):
        groups = middle.count("(?=(")  # a "(" of the pattern has a backslash before it
        if number == len(parts) or groups >= _GROUPS_MAX:
            middle += "/(?:.*/)?" + _translate(part, "[^/]*", groups)
        else:  # the first that fits, for the same reason
            inner = _translate(part, "[^/]*", groups + 1)
            middle += rf"(?=(/(?:.*?/)??{inner}(?=/)))(?:\{groups + 1})"
    return _rule(start + middle + end, takes_part, is_for_directories)
