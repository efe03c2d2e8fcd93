"""Reading calibration and evaluation data: every accepted form, every refusal, digests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import F32, FLAT, NCHW, NHWC, PAIR, label_list, numbers, pixels, refused, save_image, whole

from ftbc_onnx.data import Batch, InputSpec, open_data, random_source
from ftbc_onnx.errors import ConfigError, DataError
from ftbc_onnx.preprocessing import Preprocessing


class TestArrayFiles:
    def test_npz_by_input_name_with_labels(self, tmp_path: Path) -> None:
        a, b, labels = numbers(5, 4), np.arange(10).reshape(5, 2), np.array([3, 1, 2, 0, 9])
        np.savez_compressed(tmp_path / "d.npz", a=a, b=b, labels=labels)
        source = open_data(tmp_path / "d.npz", PAIR)
        assert len(source) == 5
        assert source.description == "d.npz"
        np.testing.assert_array_equal(whole(source, "a"), a)
        np.testing.assert_array_equal(whole(source, "b"), b)
        assert label_list(source) == [3, 1, 2, 0, 9]
        batch = next(iter(source.batches(2)))
        assert isinstance(batch, Batch)
        assert batch.labels is not None
        assert batch.labels.dtype == np.int64
        assert batch.feeds["a"].flags.c_contiguous

    @pytest.mark.parametrize("key", ["x", "images", "arr_0"])
    @pytest.mark.parametrize("label", ["label", "labels", "y", "target", "targets"])
    def test_single_input_takes_any_key(self, tmp_path: Path, key: str, label: str) -> None:
        x = numbers(3, 4)
        np.savez(tmp_path / "d.npz", **{key: x, label: np.arange(3)})
        source = open_data(str(tmp_path / "d.npz"), FLAT)
        np.testing.assert_array_equal(whole(source), x)
        assert label_list(source) == [0, 1, 2]

    def test_a_label_key_that_is_an_input_is_an_input(self, tmp_path: Path) -> None:
        x = numbers(3, 4)
        np.savez(tmp_path / "d.npz", y=x)
        source = open_data(tmp_path / "d.npz", [InputSpec("y", F32, ("N", 4))])
        np.testing.assert_array_equal(whole(source, "y"), x)
        assert not source.has_labels
        assert next(iter(source.batches(1))).labels is None

    def test_npy_stays_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        x = numbers(7, 4)
        np.save(tmp_path / "d.npy", x)
        modes, load = [], np.load
        monkeypatch.setattr(
            np, "load", lambda *a, **k: modes.append((k["mmap_mode"], k["allow_pickle"])) or load(*a, **k)
        )
        source = open_data(tmp_path / "d.npy", FLAT)
        np.testing.assert_array_equal(whole(source), x)
        assert set(modes) == {("r", False)}
        batch = next(iter(source.batches(2)))
        assert not isinstance(batch.feeds["x"], np.memmap)

    def test_npz_is_loaded_once(self, tmp_path: Path) -> None:
        x = numbers(7, 4)
        np.savez(tmp_path / "d.npz", x=x)
        source = open_data(tmp_path / "d.npz", FLAT)
        (tmp_path / "d.npz").unlink()
        np.testing.assert_array_equal(whole(source), x)
        np.testing.assert_array_equal(whole(source), x)

    def test_missing_unknown_and_ambiguous_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "d.npz"
        a, b = numbers(3, 4), np.zeros((3, 2), np.int64)
        np.savez(path, a=a)
        refused(DataError, path, "no array for b", "found a", what=path, inputs=PAIR)
        np.savez(path, a=a, b=b, c=b)
        refused(DataError, path, "unknown key c", what=path, inputs=PAIR)
        np.savez(path, a=a, b=b, y=np.arange(3), target=np.arange(3))
        refused(DataError, path, "y, target", "mean labels", what=path, inputs=PAIR)
        np.savez(path, u=a, v=a)
        refused(DataError, path, "no array for x", "u, v", what=path)
        np.savez(path, y=np.arange(3))
        refused(DataError, path, "no array for x", "y", what=path)

    def test_different_sample_counts(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", a=numbers(3, 4), b=np.zeros((2, 2), np.int64))
        refused(DataError, tmp_path / "d.npz", "'a': 3", "'b': 2", what=tmp_path / "d.npz", inputs=PAIR)

    def test_several_inputs_need_names(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", numbers(3, 4))
        refused(DataError, tmp_path / "d.npy", "a, b", what=tmp_path / "d.npy", inputs=PAIR)

    @pytest.mark.parametrize("suffix", [".npz", ".npy"])
    def test_unreadable_files(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"d{suffix}"
        save = np.save if suffix == ".npy" else np.savez
        save(path, numbers(50, 4))
        content = path.read_bytes()
        for damaged in (b"", b"no array", content[: len(content) // 2]):
            path.write_bytes(damaged)
            assert "allow_pickle" not in refused(DataError, path, "cannot be read", what=path)
        save(path, np.array([{}, "pickled"], object))
        text = refused(DataError, path, "cannot be read", "holds pickled Python objects", what=path)
        assert "allow_pickle" not in text  # no advice that cannot be followed
        save(path, np.zeros((0, 4), np.float32))
        refused(DataError, path, what=path)

    def test_npy_bytes_in_npz(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", numbers(3, 4))
        (tmp_path / "d.npy").rename(tmp_path / "d.npz")
        refused(DataError, tmp_path / "d.npz", "cannot be read", what=tmp_path / "d.npz")

    def test_corrupt_member(self, tmp_path: Path) -> None:
        path = tmp_path / "d.npz"
        np.savez(path, x=numbers(50, 4))
        content = bytearray(path.read_bytes())
        content[400] ^= 255
        path.write_bytes(bytes(content))
        refused(DataError, path, "cannot be read", what=path)

    def test_paths_that_cannot_be_data(self, tmp_path: Path) -> None:
        (tmp_path / "d.txt").write_text("1")
        (tmp_path / "empty").mkdir()
        refused(DataError, "gone.npz", "no such file", ".npz", what=tmp_path / "gone.npz")
        refused(DataError, "d.txt", "nothing to read", what=tmp_path / "d.txt")
        refused(DataError, "empty", "nothing to read", what=tmp_path / "empty")
        refused(DataError, "gone.py:data", "no such file", what=f"{tmp_path}/gone.py:data")


class TestChecks:
    def test_rank_and_sides(self) -> None:
        refused(DataError, "[5, 7]", "[N, 4]", what=numbers(5, 7))
        refused(DataError, "[5, 4, 1]", "[N, 4]", what=numbers(5, 4, 1))
        refused(DataError, "[3, 8, 6]", "[N, 3, 8, 6]", "sample axis", what=numbers(3, 8, 6), inputs=NCHW)
        refused(DataError, "[]", "sample axis", what=np.float32(3))
        refused(DataError, "empty", "[0, 4]", what=np.zeros((0, 4), np.float32))

    def test_layout_hint(self) -> None:
        refused(DataError, "[2, 8, 6, 3]", "[N, 3, 8, 6]", "--layout NHWC", what=numbers(2, 8, 6, 3), inputs=NCHW)
        refused(DataError, "[2, 3, 8, 6]", "[N, 8, 6, 3]", "--layout NCHW", what=numbers(2, 3, 8, 6), inputs=NHWC)
        wrong = Preprocessing(layout="NHWC")
        refused(DataError, "--layout NCHW", what=numbers(2, 3, 8, 6), inputs=NCHW, preprocessing=wrong)
        message = refused(DataError, "[2, 9, 9, 9]", what=numbers(2, 9, 9, 9), inputs=NCHW)
        assert "--layout" not in message

    def test_dynamic_axes_take_any_length(self) -> None:
        spec = [InputSpec("x", F32, (None, 3, "H", None))]
        assert whole(open_data(numbers(2, 3, 5, 7), spec)).shape == (2, 3, 5, 7)
        refused(DataError, "[?, 3, H, ?]", "--layout NHWC", what=numbers(2, 5, 7, 3), inputs=spec)

    def test_a_single_channel_may_be_left_out(self) -> None:
        x = numbers(2, 8, 6)
        for shape, axis in (((None, 1, 8, 6), 1), ((None, 8, 6, 1), 3)):
            source = open_data(x, [InputSpec("x", F32, shape)])
            np.testing.assert_array_equal(whole(source), np.expand_dims(x, axis))

    @pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f8", ">f4"])
    def test_numbers_become_float32(self, dtype: str) -> None:
        x = np.array([[0, 1, 1, 0]], dtype)
        assert whole(open_data(x, FLAT)).dtype == F32
        np.testing.assert_array_equal(whole(open_data(x, FLAT)), [[0, 1, 1, 0]])

    @pytest.mark.parametrize("dtype", ["c8", "U3", "M8[s]", "O"])
    def test_other_dtypes(self, dtype: str) -> None:
        refused(DataError, "(array)", "float32", what=np.zeros((1, 4), dtype))

    def test_integer_inputs(self) -> None:
        spec = [InputSpec("x", np.dtype(np.uint8), ("N", 4))]
        assert whole(open_data(np.full((1, 4), 255), spec)).dtype == np.uint8
        refused(DataError, "float32", "uint8", what=numbers(1, 4), inputs=spec)
        refused(DataError, "sample 1", "'x'", "range of uint8", what=np.array([[0] * 4, [256] * 4]), inputs=spec)
        refused(DataError, "sample 0", what=np.full((1, 4), -1), inputs=spec)
        flags = [InputSpec("x", np.dtype(bool), ("N", 4))]
        refused(DataError, "range of bool", what=np.full((1, 4), 2), inputs=flags)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity(self, value: float) -> None:
        x = numbers(9, 4)
        x[6, 1] = value
        refused(DataError, "calibration data", "sample 6", "'x'", "NaN or infinity", what=x)
        with pytest.raises(DataError, match="sample 6"):
            whole(open_data(x, FLAT).subset([0, 6]))

    def test_overflow_is_infinity(self) -> None:
        refused(DataError, "sample 0", "infinity as float32", what=np.full((1, 4), 1e300))


class TestLabels:
    def test_accepted_forms(self, tmp_path: Path) -> None:
        np.save(tmp_path / "l.npy", np.array([2, 0, 1]))
        np.savez(tmp_path / "l.npz", other=numbers(2), y=np.array([2, 0, 1]))
        np.savez(tmp_path / "only.npz", anything=np.array([2, 0, 1]))
        forms: list[Any] = [
            [2, 0, 1],
            np.array([2, 0, 1], np.uint8),
            np.array([2.0, 0.0, 1.0]),
            np.array([[2], [0], [1]]),
        ]
        forms += [np.eye(3)[[2, 0, 1]], np.eye(3, dtype=bool)[[2, 0, 1]]]
        forms += [tmp_path / "l.npy", str(tmp_path / "l.npz"), tmp_path / "only.npz"]
        for form in forms:
            source = open_data((numbers(3, 4), [0, 0, 0]), FLAT, labels=form)
            assert label_list(source) == [2, 0, 1]
        assert label_list(open_data((numbers(2, 4), np.array([True, False])), FLAT)) == [1, 0]

    def test_refused_forms(self, tmp_path: Path) -> None:
        x = numbers(3, 4)
        refused(DataError, "2 labels", "3 samples", what=x, labels=[0, 1])
        refused(DataError, "sample 1", "0.5", what=x, labels=[0, 0.5, 1])
        refused(DataError, "sample 2", "-1", what=x, labels=[0, 1, -1])
        refused(DataError, "sample 0", "nan", what=x, labels=[np.nan, 1, 1])
        refused(DataError, "[3, 2]", what=x, labels=np.full((3, 2), 0.5))
        refused(DataError, "whole numbers", what=x, labels=["cat", "dog", "cat"])
        refused(DataError, "labels", what=x, labels=[[1], [2, 3], [4]])
        np.savez(tmp_path / "d.npz", x=x, target=np.arange(2))
        refused(DataError, tmp_path / "d.npz", "'target'", "2 labels", what=tmp_path / "d.npz")
        np.savez(tmp_path / "l.npz", one=np.arange(3), two=np.arange(3))
        refused(DataError, tmp_path / "l.npz", "one, two", what=x, labels=tmp_path / "l.npz")
        refused(DataError, "gone.npy", "cannot be read", what=x, labels=tmp_path / "gone.npy")


class TestBatches:
    def test_sizes(self) -> None:
        source = open_data((numbers(10, 4), np.arange(10)), FLAT)

        def sizes(size: int, **options: Any) -> list[int]:
            return [len(batch.feeds["x"]) for batch in source.batches(size, **options)]

        assert sizes(4) == [4, 4, 2]
        assert sizes(4, drop_last=True) == [4, 4]
        assert sizes(4, limit=6) == [4, 2]
        assert sizes(4, limit=6, drop_last=True) == [4]
        assert sizes(4, limit=99) == [4, 4, 2]
        assert sizes(4, limit=0) == []
        assert sizes(20) == [10]
        assert sizes(20, drop_last=True) == []
        for size, limit in ((0, None), (4, -1)):
            with pytest.raises(ConfigError):
                source.batches(size, limit)

    def test_subset(self) -> None:
        x = numbers(10, 4)
        source = open_data((x, np.arange(10)), FLAT)
        part = source.subset([7, 2, 2, 9])
        assert len(part) == 4
        np.testing.assert_array_equal(whole(part), x[[7, 2, 2, 9]])
        assert label_list(part) == [7, 2, 2, 9]
        assert label_list(part.subset(np.array([3, 0]))) == [9, 7]
        assert len(source.subset([])) == 0
        assert len(source) == 10
        for wrong in ([10], [-1], [0.5], [[1]], [True], 3, ["a"]):
            with pytest.raises(DataError, match=r"0\.\.9"):
                source.subset(wrong)


class TestRandom:
    def test_values(self) -> None:
        inputs = [InputSpec("x", F32, ("N", 3, 40, 40)), InputSpec("t", np.dtype(np.int64), (1, 7))]
        source = random_source(inputs, 5, seed=3)
        assert (len(source), source.description, source.has_labels) == (5, "random (seed 3)", False)
        x = whole(source)
        assert x.shape == (5, 3, 40, 40)
        assert abs(float(x.mean())) < 0.05
        assert abs(float(x.std()) - 1) < 0.05
        t = whole(source, "t")
        assert (t.shape, t.dtype, int(t.max())) == ((5, 7), np.int64, 0)
        np.testing.assert_array_equal(x, whole(random_source(inputs, 5, seed=3)))
        np.testing.assert_array_equal(x[:2], whole(random_source(inputs, 2, seed=3)))
        assert not np.array_equal(x, whole(random_source(inputs, 5, seed=4)))
        assert random_source(inputs, 5, 3).digest() == source.digest() != random_source(inputs, 5, 4).digest()

    def test_refusals(self) -> None:
        with pytest.raises(DataError, match=r"'x' \[N, 3, \?, 4\].*dynamic"):
            random_source([InputSpec("x", F32, ("N", 3, None, 4))], 2, 0)
        for samples, seed in ((0, 0), (1, -1)):
            with pytest.raises(ConfigError):
                random_source(FLAT, samples, seed)


class TestDigest:
    def test_contents_decide(self, tmp_path: Path) -> None:
        x, y = numbers(300, 4), np.arange(300)
        base = open_data((x, y), FLAT).digest()
        assert re.fullmatch("[0-9a-f]{64}", base)
        np.savez(tmp_path / "d.npz", x=x, y=y)
        (tmp_path / "shards").mkdir()
        np.savez(tmp_path / "shards" / "a.npz", x=x[:70], y=y[:70])
        np.savez(tmp_path / "shards" / "b.npz", x=x[70:], y=y[70:])
        np.save(tmp_path / "d.npy", x)
        assert open_data(tmp_path / "d.npz", FLAT).digest() == base
        assert open_data(tmp_path / "shards", FLAT).digest() == base
        assert open_data(tmp_path / "d.npy", FLAT, labels=y).digest() == base

        changed = x.copy()
        changed[299, 3] += 1
        source = open_data((x, y), FLAT)
        digests = [
            base,
            open_data((changed, y), FLAT).digest(),
            open_data(x, FLAT).digest(),
            open_data((x, y[::-1]), FLAT).digest(),
            open_data((x, y), FLAT, Preprocessing(scale=2)).digest(),
            open_data((x.astype(np.float64), y), FLAT).digest(),
            source.subset(np.arange(299)).digest(),
            source.subset(np.arange(300)[::-1]).digest(),
            source.subset([0, 1]).digest(),
            source.subset([1, 0]).digest(),
        ]
        assert len(set(digests)) == len(digests)
        assert source.subset(np.arange(300)).digest() == base

    def test_images(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            save_image(tmp_path / name, pixels(8, 6, 3))
        base = open_data(tmp_path, NCHW).digest()
        assert open_data(tmp_path, NCHW).digest() == base
        assert open_data(tmp_path, NCHW, Preprocessing(scale=1)).digest() != base
        assert open_data(tmp_path, NCHW).subset([0]).digest() != base
        (tmp_path / "labels.csv").write_text("file,label\na.png,1\nb.png,0\n")
        labelled = open_data(tmp_path, NCHW).digest()
        assert labelled != base
        save_image(tmp_path / "b.png", pixels(8, 6, 3, seed=1))
        assert open_data(tmp_path, NCHW).digest() not in (base, labelled)
