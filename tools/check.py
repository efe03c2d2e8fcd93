"""Run every check: ruff, mypy, pytest. Stops at the first that fails; pytest's closing line comes last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"),  # a file's fixtures are made once
)


def main() -> int:
    for check in CHECKS:
        print("$", " ".join(check), flush=True)
        code = subprocess.run([sys.executable, "-m", *check], cwd=ROOT, check=False).returncode
        if code:
            print(f"{check[0]} failed (exit code {code})", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
