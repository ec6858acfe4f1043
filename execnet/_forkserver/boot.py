"""The first line, which turns an interpreter into a template of ``popen//forkserver``.

Start at ``first_line``.
"""

from __future__ import annotations

from .._ship.loading import code_to_load
from .far import BROKEN, START

# Run by the template's interpreter.  {load} defines ``base`` and ``part``.
_BOOT = """\
import sys
def boot():
 search, sys.path = sys.path, [entry for entry in sys.path if entry]
 import os, struct
 if sys.version_info < (3, 6):
  text = b"forkserver needs Python 3.6 or newer"
  os.write(0, struct.pack("!BiI", {broken}, 0, len(text)) + text)
  return
 {load}
 sys.path = search
 base.load_part({start!r})._find_standard_library()
 part.run(base, {preload!r})
boot()
"""


def first_line(preload: tuple[str, ...], ship: bool) -> bytes:
    """Return the line that turns an interpreter into a template.

    preload: the modules to import.  ship: whether our source has to be sent.
    """
    load = code_to_load("_forkserver.far", (START,), ships=ship)
    code = _BOOT.format(load=load.rstrip(), start=START, preload=preload, broken=BROKEN)
    return (ascii(code) + "\n").encode("ascii")
