"""docs/coverage.md says of every operator what the table in the code says."""

import importlib.util
import re
from pathlib import Path

from ftbc_onnx.graph.classes import LINEAR

ROOT = Path(__file__).resolve().parent.parent


def _tool():
    spec = importlib.util.spec_from_file_location("coverage_tool", ROOT / "tools" / "coverage.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_page_is_current():
    tool = _tool()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([^|]+?) \|", tool.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    stated = {op: (int(since), kind) for op, since, kind in rows}
    assert stated.keys() >= LINEAR.keys()
    known = tool.operators()
    for op, (since, kind) in stated.items():
        assert kind == tool.class_of(op), op
        assert since == known.get(op, since), op  # an older onnx does not know the newest operators
    assert len(stated) > 150
