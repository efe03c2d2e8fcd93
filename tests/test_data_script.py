"""Data from scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from data_cases import FLAT, label_list, numbers, refused, whole

from ftbc_onnx.data import open_data
from ftbc_onnx.errors import DataError


class TestScripts:
    def test_functions(self, tmp_path: Path) -> None:
        (tmp_path / "beside.py").write_text("VALUE = 2.0\n")
        script = tmp_path / "make.py"
        script.write_text(
            "import numpy as np\nfrom beside import VALUE\nROWS = 3\n"
            "def data():\n    return np.full((ROWS, 4), VALUE)\n"
            "def stream():\n    for _ in range(2):\n        yield {'x': np.ones((ROWS, 4))}\n"
        )
        source = open_data(str(script), FLAT)
        assert whole(source).tolist() == [[2.0] * 4] * 3
        assert source.description == "make.py:data"
        assert len(open_data(f"{script}:stream", FLAT)) == 6
        assert len(open_data(f"{script}:stream", FLAT, limit=2)) == 2

    def test_a_generator_may_import_what_is_beside_it(self, tmp_path: Path) -> None:
        """Only when it is read; and a class made there finds its module."""
        (tmp_path / "late.py").write_text("VALUE = 3.0\n")
        script = tmp_path / "make.py"
        script.write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\nimport numpy as np\n"
            "def data():\n    from late import VALUE\n    @dataclass\n    class Row:\n        value: float\n"
            "    yield np.full((1, 4), Row(VALUE).value)\n"
        )
        before = [*sys.path]
        assert whole(open_data(script, FLAT)).tolist() == [[3.0] * 4]
        assert sys.path == before
        assert not list(tmp_path.glob("__pycache__/make*"))

    def test_a_path_with_labels_from_a_script(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", numbers(3, 4))
        (tmp_path / "make.py").write_text(f"def data():\n    return {str(tmp_path / 'x.npy')!r}, [2, 0, 1]\n")
        source = open_data(tmp_path / "make.py", FLAT)
        np.testing.assert_array_equal(whole(source), numbers(3, 4))
        assert label_list(source) == [2, 0, 1]
        assert label_list(open_data(tmp_path / "make.py", FLAT, labels=[0, 0, 1])) == [0, 0, 1]

    def test_a_path_from_a_script(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", numbers(2, 4))
        script = tmp_path / "make.py"
        script.write_text(f"def data():\n    return {str(tmp_path / 'd.npy')!r}\n")
        assert len(open_data(script, FLAT)) == 2

    def test_refusals(self, tmp_path: Path) -> None:
        script = tmp_path / "make.py"
        script.write_text(
            "def data():\n    raise KeyError('lost')\n"
            "def lazy():\n    yield 1 / 0\n"
            "def leave():\n    raise SystemExit(0)\n"
            f"def again():\n    return {str(script)!r}\n"
            "def short():\n    import numpy as np\n    return np.zeros((2, 3))\n"
        )
        refused(DataError, "make.py", "KeyError", "lost", what=str(script))
        refused(DataError, "make.py:lazy", "ZeroDivisionError", what=f"{script}:lazy")
        refused(DataError, "make.py:leave", "SystemExit", what=f"{script}:leave")
        refused(DataError, "make.py:nothing", "no function 'nothing'", what=f"{script}:nothing")
        refused(DataError, "make.py:short", "[2, 3]", what=f"{script}:short")
        refused(DataError, "make.py:again", what=f"{script}:again")
        script.write_text("def data(:\n")
        refused(DataError, "make.py", "SyntaxError", what=str(script))
