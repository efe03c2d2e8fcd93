"""Saving a converted model: where to, never over its input, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from networks import residual
from pipeline_cases import quick

from ftbc_onnx import ModelError
from ftbc_onnx.graph import files
from ftbc_onnx.pipeline import ConversionResult


class TestSave:
    @pytest.fixture
    def result(self, tmp_path: Path) -> ConversionResult:
        onnx.save(residual(), tmp_path / "net.v2.onnx")
        return quick(tmp_path / "net.v2.onnx")

    def test_beside_the_input_by_default(self, result: ConversionResult, tmp_path: Path) -> None:
        assert result.save() == tmp_path / "net.v2.snn_T3.onnx"
        assert onnx.load(tmp_path / "net.v2.snn_T3.onnx") == result.model

    def test_of_a_proto_in_the_current_folder_under_the_graphs_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert quick().save() == Path("residual.snn_T3.onnx")
        model = residual()
        model.graph.name = "main/graph:0"
        path = quick(model).save()
        assert path.is_file()
        assert path.resolve().parent == tmp_path

    def test_a_name_in_another_encoding(self, tmp_path: Path) -> None:
        """Metadata are UTF-8: what is none is spelled out."""
        source = tmp_path / os.fsdecode(b"caf\xe9.onnx")
        onnx.save(residual(), source)
        written = quick(source).save()
        assert written == tmp_path / os.fsdecode(b"caf\xe9.snn_T3.onnx")
        (name,) = [entry.value for entry in onnx.load(written).metadata_props if entry.key == "ftbc_onnx.source"]
        assert name == "caf\\udce9.onnx"

    @pytest.mark.parametrize("alias", ["same", "link", "dots"])
    def test_never_over_the_input(self, result: ConversionResult, tmp_path: Path, alias: str) -> None:
        source = tmp_path / "net.v2.onnx"
        before = source.read_bytes()
        (tmp_path / "link.onnx").symlink_to(source)
        (tmp_path / "sub").mkdir()
        path = {"same": source, "link": tmp_path / "link.onnx", "dots": tmp_path / "sub" / ".." / "net.v2.onnx"}[alias]
        with pytest.raises(ModelError, match="is the input itself: choose another --output"):
            result.save(path)
        assert source.read_bytes() == before

    def test_over_an_older_result(self, result: ConversionResult, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_bytes(b"old")
        assert onnx.load(result.save(tmp_path / "out.onnx")) == result.model

    def test_although_the_input_is_gone(self, result: ConversionResult, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_bytes(b"old")
        (tmp_path / "net.v2.onnx").unlink()
        assert onnx.load(result.save(tmp_path / "out.onnx")) == result.model

    def test_missing_folder(self, result: ConversionResult, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"the folder '.*nowhere' does not exist: create it"):
            result.save(tmp_path / "nowhere" / "out.onnx")

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("limit", [files._PROTOBUF_LIMIT, 1000])
    def test_whole_or_not_at_all(
        self,
        result: ConversionResult,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        limit: int,
    ) -> None:
        """With one file, and with weights beside it as over 2 GB."""
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", limit)
        target = tmp_path / "out.onnx"
        target.write_bytes(b"old")
        before = sorted(tmp_path.iterdir())

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            result.save(target)
        if isinstance(error, OSError):
            assert "cannot be written: No space left on device" in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
        assert target.read_bytes() == b"old"
