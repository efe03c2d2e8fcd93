"""Commands as the shell of this system takes them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

_PLAIN = re.compile(r"[\w./\\:=,+-]+")  # what means nothing else to cmd.exe and to PowerShell


def joined(words: Iterable[str]) -> str:
    """Words as one command, quoted where that is needed: on Windows in double quotes, since cmd.exe knows no others."""
    if os.name != "nt":
        return shlex.join(words)
    return " ".join(w if _PLAIN.fullmatch(w) else '"' + w.replace('"', '\\"') + '"' for w in words)
