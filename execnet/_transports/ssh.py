"""What OpenSSH is told: its options, the command for the far shell, how to share connections.

Nothing is started here.  Start at ``options``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex

from .._folders import ssh_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..xspec import XSpec

# While ssh makes the socket it adds "." and 16 letters; %C stands for 40; a path ends with a 0.
SOCKET_NAME_BYTES = len("/") + 8 + 40 + 17 + 1


def options(spec: XSpec, place: list[str]) -> list[str]:
    """Return the options of ssh that a spec stands for; ``place``: its own words for ssh."""
    options = [] if spec.ssh_compression == "no" else ["-C"]
    if spec.ssh_config:
        options += ["-F", spec.ssh_config]
    if spec.ssh_persist and not spec.via:  # nobody knows where a socket could be on that machine
        path = control_path(spec, place)
        if path is not None:
            options += ["-o", "ControlMaster=auto", "-o", f"ControlPersist={spec.ssh_persist}"]
            options += ["-o", f"ControlPath={path}"]
    return options


def without_compression(words: list[str]) -> list[str]:
    """Return an ssh command without our ``-C``; a ``-C`` of the spec itself stays.

    ``ssh_args`` has always added it, and programs may rely on that.
    """
    place = 1 if words[0] == "ssh" else words.index("--") + 1
    return words[:place] + words[place + (words[place] == "-C") :]


def without_terminal(words: list[str]) -> list[str]:
    """Return an ssh command with ``-T``, so that no config can put a terminal in between.

    It comes after the words of the spec, where ssh accepts options as well, unless these have a
    "--".
    """
    *before, command = words
    if before[0] == "ssh" and "--" in before:
        place = before.index("--")
        return [*before[:place], "-T", *before[place:], command]
    return [*before, "-T", command]


def asking_nobody(words: list[str]) -> list[str]:
    """Return an ssh command that fails where it would have asked for something."""
    return with_options(words, ["-o", "BatchMode=yes"])


def with_options(words: list[str], options: list[str]) -> list[str]:
    """Return an ssh command with options that nothing else in it overrides."""
    place = 1 if words[0] == "ssh" else words.index("--") + 1
    return [*words[:place], *options, *words[place:]]


def for_shell(words: list[str]) -> str:
    """Return words as one command for a shell over there, whichever that is.

    A leading ``~/`` or ``~user/`` keeps its meaning.  The text of ``-c`` is put in double quotes if
    possible, the only ones that a shell other than Unix's knows.
    """
    command = " ".join(_quote(word) for word in words)
    return _in_sh(command) if any(map(_SHELLS_DIFFER.search, words)) else command


# Also in single quotes, csh and tcsh act on "!" and end at a newline, and fish takes a backslash
# before another one, or before a quote, for an escape.
_SHELLS_DIFFER = re.compile(r"[!\n]|\\(?=[\\']|\Z)")


def _in_sh(command: str) -> str:
    """Make ``sh`` run a command, whose text is encoded so that no other shell changes it."""

    def octal(found: re.Match[str]) -> str:
        octets = found[0].encode("utf-8", "surrogateescape")
        return "".join(f"\\0{octet:03o}" for octet in octets)

    text = re.sub(r"[^A-Za-z0-9 /._=:-]", octal, command)
    return f"""sh -c 'eval "exec env $(printf %b "{text}")"'"""


def _quote(word: str) -> str:
    home = re.match(r"~[A-Za-z0-9_.-]*/", word)
    if home:
        return home.group() + (_quote(word[home.end() :]) if word[home.end() :] else "")
    quoted = shlex.quote(word)
    if quoted != word and not re.search(r'["$`\\!%\n]', word) and word.isascii():
        return f'"{word}"'
    return quoted


# ---------------------------------------------------------------- sharing


def control_path(spec: XSpec, place: list[str]) -> str | None:
    """Return the pattern of the socket over which connections to a place are shared.

    Specs that tell ssh different things have different ones, so that the key or the config of one
    is never used for another.  None if there is no folder for it.
    """
    folder = ssh_folder(SOCKET_NAME_BYTES)
    if folder is None:
        return None
    config = os.path.abspath(spec.ssh_config) if spec.ssh_config else ""
    said = "\0".join([config, *place]).encode("utf-8", "surrogateescape")
    return os.path.join(folder.replace("%", "%%"), hashlib.sha256(said).hexdigest()[:8] + "%C")
