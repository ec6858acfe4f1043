"""What PyInstaller collects: all modules, as execnet loads most when they are first used.

With their source, which is sent to workers that run another interpreter.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("execnet", lambda name: not name.endswith("service"))
module_collection_mode = "pyz+py"
