"""`ftbc-onnx report` and `convert --report`: what is printed, which files are written, and what is no report."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import html
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_cases import Caller, ann, call, data, fails, snn  # noqa: F401 - fixtures

from ftbc_onnx import page


class TestReport:
    """Pages themselves are the matter of `test_page`."""

    @pytest.fixture
    def saved(self, call: Caller, ann: Path, data: Path) -> Path:
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data, "--json")
        data.with_name("r.json").write_text(done.out)
        return data.with_name("r.json")

    def test_convert_writes_the_page(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
        page = tmp_path / "a page.html"
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data, "--report", page)
        assert (done.code, done.err) == (0, "")
        assert f"wrote {page} (0." in done.out
        command = f"ftbc-onnx convert {ann} -T 2 --calib-data {data} --eval-data {data} --report '{page}'"
        assert html.escape(command).replace("&#x27;", "&#39;") in page.read_text(encoding="utf-8")

    def test_later_it_is_the_same_page(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--json", "--report", tmp_path / "a.html")
        saved = tmp_path / "r.json"
        saved.write_text(done.out)
        done = call("report", saved, "-o", tmp_path / "b.html", "--png", tmp_path / "figures")
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
        written = [tmp_path / "b.html", *sorted((tmp_path / "figures").glob("*.png"))]
        assert len(written) == 6
        assert sorted(done.out.splitlines()) == sorted(f"wrote {path}" for path in written)

    def test_without_a_page_it_is_what_convert_prints(self, call: Caller, ann: Path, data: Path, saved: Path) -> None:
        first = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data).out.splitlines()[:-1]
        second = call("report", saved).out.splitlines()
        assert [line for line in second if "batch(es)" not in line] == [x for x in first if "batch(es)" not in x]
        assert json.loads(saved.read_text())["summary"][1:]
        for sentence in json.loads(saved.read_text())["summary"][1:]:
            assert sentence in second

    def test_of_another_version_it_is_one_line(
        self, call: Caller, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is missing or otherwise: what is refused by name, and what only turns out on the way."""
        pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
        figure, page_of = (importlib.import_module(name) for name in ("matplotlib.figure", "ftbc_onnx.page.html"))
        to_svg, shown = page_of.to_svg, ("sites", "evaluation", "evaluation_without_bias", "energy", "selections")

        def quick(draw: Callable[[object], None], *_: object) -> str:
            """A figure that is drawn, but not laid out and written, which takes nearly all of the time."""
            draw(figure.Figure())
            return "<svg/>"

        read, page = json.loads(saved.read_text()), saved.with_suffix(".html")
        refused = 0
        for name in read:
            monkeypatch.setattr(page_of, "to_svg", to_svg if name in shown else quick)
            for damaged in ({k: v for k, v in read.items() if k != name}, {**read, name: None}, {**read, name: 5}):
                saved.write_text(json.dumps(damaged))
                for arguments in (("-v",), ("-o", page)):
                    done = call("report", saved, *arguments)
                    assert done.code in (0, 2), done.err
                    assert done.code == 0 or "is no report of a conversion by this version" in done.err
                    assert done.err.count("\n") <= 1
                    refused += done.code != 0
        assert refused > 10

    def test_numbers_that_were_not_finite(self, call: Caller, saved: Path) -> None:
        read = json.loads(saved.read_text())
        for site in read["evaluation"]["sites"].values():
            site["gap_in_theta"], site["rate"] = [None, None], None
        for selection in read["selections"]:
            selection["trials"][0]["error"] = None
        saved.write_text(json.dumps(read))
        done = call("report", saved, "-v")
        assert (done.code, done.err) == (0, "")
        assert "not finite" in done.out

    def test_from_stdin(self, call: Caller, saved: Path) -> None:
        command = [sys.executable, "-m", "ftbc_onnx", "report", "-"]
        done = subprocess.run(command, input=saved.read_text(), capture_output=True, text=True, timeout=120, check=True)
        assert (done.stdout, done.stderr) == (call("report", saved).out, "")

    @pytest.mark.parametrize("content", [b"\xff\x00", b"nothing", b"[]", b"{}", b'{"sites": 3}'])
    def test_what_is_no_report(self, call: Caller, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "r.json").write_bytes(content)
        fails(call("report", tmp_path / "r.json"), 2, "r.json' is no ", "ftbc-onnx convert --json")

    def test_of_another_version(self, call: Caller, saved: Path) -> None:
        report = json.loads(saved.read_text())
        del report["evaluation"]["sites"]["r2"]["rate_range"]
        saved.write_text(json.dumps(report))
        fails(
            call("report", saved), 2, "no report of a conversion by this version (a measured site without 'rate_range')"
        )

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
    def test_as_powershell_redirects_it(self, call: Caller, saved: Path, encoding: str) -> None:
        plain = call("report", saved)
        saved.write_text(saved.read_text(), encoding=encoding)
        assert call("report", saved) == plain
        assert plain.code == 0

    def test_a_network_is_none(self, call: Caller, snn: Path) -> None:
        fails(call("report", snn), 2, "is no JSON")

    def test_without_the_libraries(
        self, call: Caller, ann: Path, data: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Known before the conversion starts."""
        monkeypatch.setattr(page, "find_spec", lambda _: None)
        target = ann.with_name("o.onnx")
        done = call("convert", ann, "--calib-data", data, "-o", target, "--report", ann.with_name("r.html"))
        fails(done, 2, 'takes matplotlib and jinja2: pip install "ftbc-onnx[report]"')
        assert not target.exists()
        fails(call("report", saved, "-o", ann.with_name("r.html")), 2, 'pip install "ftbc-onnx[report]"')
        assert call("report", saved).code == 0

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("net.onnx", "exists and is no .html file"),
            (".", "is a folder"),
            ("none/r.html", "does not exist: create it first"),
            ("new.html", "is the name of the converted model"),
            ("new.pdf", "is to be an HTML page: give a name that ends in .html"),
        ],
    )
    def test_targets_that_cannot_be_meant(self, call: Caller, ann: Path, data: Path, name: str, said: str) -> None:
        before = ann.read_bytes()
        target = ann.with_name("new.html")
        done = call("convert", ann, "--calib-data", data, "-o", target, "--report", ann.parent / name)
        fails(done, 2, "--report '", said)
        assert ann.read_bytes() == before
        assert not target.exists()
