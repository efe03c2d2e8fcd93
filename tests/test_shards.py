"""Data that are in memory already, and data that come once and are kept in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import FLAT, NCHW, PAIR, label_list, numbers, pixels, refused, save_image, whole

from ftbc_onnx.data import open_data
from ftbc_onnx.errors import ConfigError, DataError


class TestShards:
    def folder(self, tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
        x, y = numbers(9, 4), np.arange(9)
        for name, part in (("b", slice(4, 5)), ("a", slice(0, 4)), ("c", slice(5, 9))):
            np.savez(tmp_path / f"{name}.npz", x=x[part], y=y[part])
        return tmp_path, x, y

    def test_sorted_and_concatenated(self, tmp_path: Path) -> None:
        folder, x, y = self.folder(tmp_path)
        source = open_data(folder, FLAT)
        assert len(source) == 9
        np.testing.assert_array_equal(whole(source), x)
        assert label_list(source) == list(y)
        order = [8, 0, 4, 4, 1]
        np.testing.assert_array_equal(whole(source.subset(order)), x[order])

    def test_one_shard_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import weakref

        from ftbc_onnx import data

        folder, _, _ = self.folder(tmp_path)
        alive: list[weakref.ref[np.ndarray]] = []
        load = data._load

        def watched(path: Path, where: str) -> dict[str, np.ndarray]:
            assert not any(ref() is not None for ref in alive)
            arrays = load(path, where)
            alive.append(weakref.ref(arrays["x"]))
            return arrays

        monkeypatch.setattr(data, "_load", watched)
        source = open_data(folder, FLAT)
        assert len(list(source.batches(2))) == 5
        assert len(alive) == 6  # each file once for the checks and once for the batches

    @pytest.mark.parametrize(("kept", "loads"), [(1 << 28, 6), (0, None)])
    def test_files_of_a_class_each_are_read_once_for_a_calibration(
        self, kept: int, loads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their samples are mixed, and a batch has some of every file; with too many for memory it is as it was."""
        from ftbc_onnx import data, shards

        x = numbers(120, 4)
        for label in range(3):
            rows = slice(40 * label, 40 * label + 40)
            np.savez(tmp_path / f"{label}.npz", x=x[rows], y=np.full(40, label))
        seen: list[Path] = []
        load = data._load
        monkeypatch.setattr(data, "_load", lambda path, where: seen.append(path) or load(path, where))
        monkeypatch.setattr(shards, "KEPT", kept)
        source = open_data(tmp_path, FLAT)
        batches = [batch for _ in range(2) for batch in source.batches(8)]
        assert all(len(np.unique(batch.labels)) == 3 for batch in batches)
        assert len(seen) > 40 if loads is None else len(seen) == loads
        for batch in (source.subset([7, 3]), source):
            rows = np.concatenate([b.feeds["x"] for b in batch.batches(50)])
            labels = np.concatenate([b.labels for b in batch.batches(50)])
            places = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in rows]
            np.testing.assert_array_equal(labels, np.array(places) // 40)
        monkeypatch.setattr(shards, "KEPT", 0)
        assert source.digest() == open_data(tmp_path, FLAT).digest()

    def test_npy_shards(self, tmp_path: Path) -> None:
        np.save(tmp_path / "1.npy", numbers(2, 4))
        np.save(tmp_path / "2.npy", numbers(3, 4, seed=1))
        source = open_data(tmp_path, FLAT)
        np.testing.assert_array_equal(whole(source), np.concatenate([numbers(2, 4), numbers(3, 4, seed=1)]))

    def test_shards_that_differ(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=numbers(2, 4), y=np.arange(2))
        np.savez(tmp_path / "b.npz", x=numbers(2, 4))
        refused(DataError, "b.npz", "a.npz", "differ", what=tmp_path)
        np.savez(tmp_path / "b.npz", x=np.zeros((2, 4)), y=np.arange(2))
        refused(DataError, "b.npz", "dtypes", what=tmp_path)
        np.savez(tmp_path / "b.npz", x=numbers(2, 5), y=np.arange(2))
        refused(DataError, "b.npz", "[2, 5]", "[N, 4]", what=tmp_path)

    def test_bad_value_names_file_and_sample(self, tmp_path: Path) -> None:
        folder, x, _ = self.folder(tmp_path)
        bad = x[5:9].copy()
        bad[2, 1] = np.nan
        np.savez(folder / "c.npz", x=bad, y=np.arange(4))
        refused(DataError, folder / "c.npz", "sample 2", "'x'", "NaN", what=folder)

    def test_images_beside_arrays(self, tmp_path: Path) -> None:
        np.save(tmp_path / "1.npy", numbers(2, 4))
        save_image(tmp_path / "i.png", pixels(8, 6, 3))
        refused(DataError, "1.npy", "separate folders", what=tmp_path, inputs=NCHW)


class TestMemory:
    def test_array(self) -> None:
        x = numbers(5, 4)
        source = open_data(x, FLAT)
        np.testing.assert_array_equal(whole(source), x)
        next(iter(source.batches(5))).feeds["x"][:] = 0
        np.testing.assert_array_equal(whole(source), numbers(5, 4))

    def test_mapping(self) -> None:
        source = open_data({"a": numbers(5, 4), "b": np.ones((5, 2), np.int32), "y": np.arange(5)}, PAIR)
        assert next(iter(source.batches(5))).feeds["b"].dtype == np.int64
        assert label_list(source) == [0, 1, 2, 3, 4]

    def test_pairs(self) -> None:
        x = numbers(5, 4)
        source = open_data((x, [4, 3, 2, 1, 0]), FLAT)
        np.testing.assert_array_equal(whole(source), x)
        assert label_list(source) == [4, 3, 2, 1, 0]
        assert label_list(open_data(({"x": x}, np.arange(5)), FLAT)) == [0, 1, 2, 3, 4]

    def test_iterables(self) -> None:
        x = numbers(6, 4)
        parts = [x[:2], x[2:5], x[5:]]
        np.testing.assert_array_equal(whole(open_data(parts, FLAT)), x)
        np.testing.assert_array_equal(whole(open_data((part for part in parts), FLAT)), x)
        np.testing.assert_array_equal(whole(open_data([{"x": part} for part in parts], FLAT)), x)
        source = open_data([[part, np.full(len(part), len(part))] for part in parts], FLAT)
        np.testing.assert_array_equal(whole(source), x)
        assert label_list(source) == [2, 2, 3, 3, 3, 1]

    def test_a_reader_of_arrays(self) -> None:
        class Reader:
            def __init__(self) -> None:
                self.left = [numbers(2, 4), numbers(3, 4, seed=1)]

            def get_next(self) -> np.ndarray | None:
                return self.left.pop(0) if self.left else None

        np.testing.assert_array_equal(whole(open_data(Reader(), FLAT)), np.concatenate(Reader().left))

    def test_reader_with_get_next_and_a_reused_buffer(self) -> None:
        class Reader:
            def __init__(self) -> None:
                self.buffer, self.count = np.zeros((2, 4), np.float32), 0

            def get_next(self) -> dict[str, np.ndarray] | None:
                self.count += 1
                self.buffer[:] = self.count
                return {"x": self.buffer} if self.count <= 3 else None

        source = open_data(Reader(), FLAT)
        assert whole(source)[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        assert whole(source)[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        assert source.description == "Reader"
        exhausted = Reader()
        exhausted.count = 3
        refused(DataError, "Reader", "no samples", "rewind", what=exhausted)

    def test_limit_stops_an_endless_iterable(self) -> None:
        def endless() -> Any:
            while True:
                yield np.ones((4, 4), np.float32)

        assert len(open_data(endless(), FLAT, limit=6)) == 6
        assert len(open_data(numbers(9, 4), FLAT, limit=6)) == 6
        assert len(open_data(numbers(5, 4), FLAT, limit=6)) == 5
        refused(ConfigError, "limit 0", what=numbers(5, 4), limit=0)

    @pytest.mark.parametrize("count", [1, 2, 3, 50, 99, 100])
    def test_limit_spreads_over_what_has_a_length(self, tmp_path: Path, count: int) -> None:
        x = np.repeat(np.arange(100, dtype=np.float32)[:, None], 4, axis=1)
        np.savez(tmp_path / "d.npz", x=x, y=np.arange(100))
        np.save(tmp_path / "d.npy", x)
        for what in (x, {"x": x}, tmp_path / "d.npz", tmp_path / "d.npy"):
            taken = whole(open_data(what, FLAT, limit=count, purpose="evaluation"))[:, 0]  # in the order of the data
            assert len(set(taken)) == count
            assert set(whole(open_data(what, FLAT, limit=count))[:, 0]) == set(taken)
            steps = np.diff([*taken, 100])
            assert taken[0] == 0
            assert set(steps) <= {100 // count, -(-100 // count)}
        (tmp_path / "d.npy").unlink()
        assert label_list(open_data(tmp_path, FLAT, limit=count, purpose="evaluation")) == [*taken]
        parts = [x[:60], x[60:]]
        assert whole(open_data(parts, FLAT, limit=count))[:, 0].tolist() == list(range(count))

    def test_foreign_arrays(self) -> None:
        class Tensor:
            def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
                return numbers(2, 4)

        class OnDevice:
            def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
                raise TypeError("copy it to the host\nfirst")

        np.testing.assert_array_equal(whole(open_data(Tensor(), FLAT)), numbers(2, 4))
        np.testing.assert_array_equal(whole(open_data([Tensor()], FLAT)), numbers(2, 4))
        refused(DataError, "copy it to the host first", what=OnDevice())

    def test_other_things(self) -> None:
        refused(DataError, "int", "evaluation data", what=3, purpose="evaluation")
        refused(DataError, "no samples", what=[])
        refused(DataError, "(array)", "a, b", what=numbers(3, 4), inputs=PAIR)
        refused(DataError, "item 1", "[2, 5]", what=[numbers(2, 4), numbers(2, 5)])
