"""Reading calibration and evaluation data: every accepted form, every refusal, preprocessing and digests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftbc_onnx.data import Batch, DataSource, InputSpec, open_data, random_source
from ftbc_onnx.errors import ConfigError, DataError, FtbcError
from ftbc_onnx.preprocessing import Preprocessing

F32 = np.dtype(np.float32)
NCHW = [InputSpec("x", F32, ("N", 3, 8, 6))]
NHWC = [InputSpec("x", F32, ("N", 8, 6, 3))]
FLAT = [InputSpec("x", F32, ("N", 4))]
PAIR = [InputSpec("a", F32, ("N", 4)), InputSpec("b", np.dtype(np.int64), (None, 2))]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(source: DataSource, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feeds[name] for batch in source.batches(3)])


def label_list(source: DataSource) -> list[int]:
    assert source.has_labels
    return [int(label) for batch in source.batches(3) for label in batch.labels]


def refused(kind: type[FtbcError], *parts: object, what: Any, inputs: list[InputSpec] = FLAT, **options: Any) -> str:
    """Opens and reads, and checks that the refusal is one line that holds every part."""
    with pytest.raises(kind) as caught:
        for _ in open_data(what, inputs, **options).batches(4):
            pass
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def save_image(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


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
            taken = whole(open_data(what, FLAT, limit=count))[:, 0]
            assert len(set(taken)) == count
            steps = np.diff([*taken, 100])
            assert taken[0] == 0
            assert set(steps) <= {100 // count, -(-100 // count)}
        (tmp_path / "d.npy").unlink()
        assert label_list(open_data(tmp_path, FLAT, limit=count)) == [*taken]
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
            f"def again():\n    return {str(script)!r}\n"
            "def short():\n    import numpy as np\n    return np.zeros((2, 3))\n"
        )
        refused(DataError, "make.py", "KeyError", "lost", what=str(script))
        refused(DataError, "make.py:lazy", "ZeroDivisionError", what=f"{script}:lazy")
        refused(DataError, "make.py:nothing", "no function 'nothing'", what=f"{script}:nothing")
        refused(DataError, "make.py:short", "[2, 3]", what=f"{script}:short")
        refused(DataError, "make.py:again", what=f"{script}:again")
        script.write_text("def data(:\n")
        refused(DataError, "make.py", "SyntaxError", what=str(script))


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


class TestPreprocessing:
    def test_arithmetic(self) -> None:
        x = pixels(4, 3, 8, 6)
        options = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        mean, std = np.float32(options.mean).reshape(3, 1, 1), np.float32(options.std).reshape(3, 1, 1)
        wanted = (x.astype(np.float32) * np.float32(1 / 255) - mean) / std
        got = whole(open_data(x, NCHW, options))
        assert got.dtype == F32
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(
            whole(open_data(x.transpose(0, 2, 3, 1), NHWC, options)), wanted.transpose(0, 2, 3, 1)
        )

    def test_each_step_alone(self) -> None:
        x = pixels(2, 4)
        y = x.astype(np.float32)
        for options, wanted in (
            (Preprocessing(), y),
            (Preprocessing(scale=2), y * 2),
            (Preprocessing(mean=(1.5,)), y - np.float32(1.5)),
            (Preprocessing(std=(1, 2, 4, 8)), y / np.float32([1, 2, 4, 8])),
        ):
            np.testing.assert_array_equal(whole(open_data(x, FLAT, options)), wanted)

    def test_layout(self) -> None:
        x = numbers(4, 3, 8, 6)
        moved = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(whole(open_data(moved, NCHW, Preprocessing(layout="NHWC"))), x)
        np.testing.assert_array_equal(whole(open_data(x, NHWC, Preprocessing(layout="NCHW"))), moved)
        np.testing.assert_array_equal(whole(open_data(x, NCHW, Preprocessing(layout="NCHW"))), x)

    def test_only_images_among_several_inputs(self) -> None:
        inputs = [NCHW[0], InputSpec("v", F32, ("N", 2)), InputSpec("t", np.dtype(np.int64), ("N", 2))]
        arrays = {"x": numbers(2, 3, 8, 6), "v": numbers(2, 2), "t": np.ones((2, 2), np.int64)}
        source = open_data(arrays, inputs, Preprocessing(scale=2))
        np.testing.assert_array_equal(whole(source), arrays["x"] * 2)
        np.testing.assert_array_equal(whole(source, "v"), arrays["v"])
        np.testing.assert_array_equal(whole(source, "t"), arrays["t"])

    def test_does_not_fit_the_data(self) -> None:
        refused(
            ConfigError,
            "2 channels",
            "have 3",
            what=numbers(1, 3, 8, 6),
            inputs=NCHW,
            preprocessing=Preprocessing(mean=(1, 2)),
        )
        tokens = [InputSpec("x", np.dtype(np.int64), ("N", 4))]
        refused(ConfigError, "floats", what=np.ones((1, 4), int), inputs=tokens, preprocessing=Preprocessing(scale=2))
        for options in (Preprocessing(resize=4), Preprocessing(crop=4), Preprocessing(color="bgr")):
            refused(ConfigError, "image files", what=numbers(1, 4), preprocessing=options)

    def test_double_and_half_models(self) -> None:
        for dtype in (np.float16, np.float64):
            got = whole(open_data(np.full((1, 4), 0.1), [InputSpec("x", np.dtype(dtype), ("N", 4))]))
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, np.full((1, 4), dtype(0.1)))

    @pytest.mark.parametrize(
        "values",
        [
            {"resize": 0},
            {"resize": (4,)},
            {"resize": (4, 4, 4)},
            {"crop": -1},
            {"crop": 2.5},
            {"crop": True},
            {"scale": 0},
            {"scale": float("nan")},
            {"scale": "much"},
            {"mean": ()},
            {"mean": 0.5},
            {"mean": "123"},
            {"mean": (1, float("inf"))},
            {"std": (1, 0)},
            {"mean": (1, 2), "std": (1, 2, 3)},
            {"layout": "HWC"},
            {"color": "cmyk"},
        ],
    )
    def test_refused_values(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=re.escape(next(iter(values)))) as caught:
            Preprocessing(**values)
        assert "\n" not in str(caught.value)

    def test_record(self) -> None:
        import json

        options = Preprocessing(
            resize=9, crop=(8, 6), scale=0.5, mean=(1, 2, 3), std=(1, 1, 2), layout="NHWC", color="bgr"
        )
        record = json.loads(json.dumps(options.as_dict()))
        assert record["crop"] == [8, 6]
        assert Preprocessing.from_dict(record) == options
        assert Preprocessing().as_dict() == {}
        assert Preprocessing.from_dict({}) == Preprocessing()
        with pytest.raises(ConfigError, match="colour"):
            Preprocessing.from_dict({"colour": "rgb"})


class TestImages:
    def test_sorted_with_defaults(self, tmp_path: Path) -> None:
        arrays = {name: pixels(8, 6, 3, seed=i) for i, name in enumerate(["b.png", "a.BMP", "c/d.png"])}
        for name, array in arrays.items():
            save_image(tmp_path / name, array)
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "._b.png").write_text("no image either")
        wanted = np.stack([arrays[name] for name in sorted(arrays)]).astype(np.float32) * np.float32(1 / 255)
        source = open_data(tmp_path, NHWC)
        np.testing.assert_array_equal(whole(source), wanted)
        np.testing.assert_array_equal(whole(open_data(tmp_path, NCHW)), wanted.transpose(0, 3, 1, 2))
        assert not source.has_labels
        assert source.preprocessing == Preprocessing(scale=1 / 255, color="rgb")
        assert source.description == tmp_path.name

    def test_formats(self, tmp_path: Path) -> None:
        array = np.full((8, 6, 3), (200, 100, 50), np.uint8)
        for name in ("a.jpg", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.ppm", "g.gif", "h.tiff"):
            save_image(tmp_path / name, array)
        got = whole(open_data(tmp_path, NHWC, Preprocessing(scale=1)))
        assert len(got) == 8
        assert np.abs(got - array).max() <= 4

    def test_given_arithmetic(self, tmp_path: Path) -> None:
        array = pixels(8, 6, 3)
        save_image(tmp_path / "a.png", array)
        options = Preprocessing(scale=1, mean=(104, 117, 123), color="bgr")
        wanted = array[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) - np.float32([104, 117, 123]).reshape(3, 1, 1)
        np.testing.assert_array_equal(whole(open_data(tmp_path, NCHW, options))[0], wanted)

    def test_uint8_model_gets_pixels(self, tmp_path: Path) -> None:
        array = pixels(8, 6, 3)
        save_image(tmp_path / "a.png", array)
        spec = [InputSpec("x", np.dtype(np.uint8), (None, 8, 6, 3))]
        source = open_data(tmp_path, spec)
        np.testing.assert_array_equal(whole(source)[0], array)
        assert source.preprocessing == Preprocessing(color="rgb")
        refused(ConfigError, "floats", what=tmp_path, inputs=spec, preprocessing=Preprocessing(scale=0.5))

    def test_modes(self, tmp_path: Path) -> None:
        rgb = Image.fromarray(pixels(8, 6, 3))
        for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
            image = rgb.convert(mode)
            image.save(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
        palette = rgb.convert("P")
        palette.save(tmp_path / "transparent.png", transparency=bytes(range(256)))
        assert whole(open_data(tmp_path, NCHW)).shape == (7, 3, 8, 6)
        gray = [InputSpec("x", F32, ("N", 1, 8, 6))]
        source = open_data(tmp_path, gray)
        assert whole(source).shape == (7, 1, 8, 6)
        assert source.preprocessing.color == "gray"
        np.testing.assert_array_equal(
            whole(source.subset([2]))[0, 0], np.asarray(rgb.convert("L")).astype(np.float32) * np.float32(1 / 255)
        )

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        path = save_image(tmp_path / "a.png", np.full((8, 6), 40000, np.uint16))
        refused(DataError, path, "8 bits", what=tmp_path, inputs=NCHW)

    def test_exif_orientation(self, tmp_path: Path) -> None:
        array = pixels(6, 8, 3)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by a quarter
        save_image(tmp_path / "a.png", array, exif=exif)
        got = whole(open_data(tmp_path, NHWC, Preprocessing(scale=1)))
        np.testing.assert_array_equal(got[0], np.rot90(array, -1))

    def test_resize_and_crop(self, tmp_path: Path) -> None:
        array = pixels(20, 30, 3)
        save_image(tmp_path / "a.png", array)
        image = Image.fromarray(array)
        got = whole(open_data(tmp_path, NHWC, Preprocessing(resize=(8, 6), scale=1)))
        np.testing.assert_array_equal(got[0], image.resize((6, 8), Image.Resampling.BILINEAR))
        got = whole(open_data(tmp_path, NHWC, Preprocessing(resize=10, crop=(8, 6), scale=1)))
        small = np.asarray(image.resize((15, 10), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(got[0], small[1:9, 4:10])
        square = [InputSpec("x", F32, ("N", 12, 12, 3))]
        got = whole(open_data(tmp_path, square, Preprocessing(crop=12, scale=1)))
        np.testing.assert_array_equal(got[0], array[4:16, 9:21])

    def test_wrong_sizes(self, tmp_path: Path) -> None:
        path = save_image(tmp_path / "a.png", pixels(9, 7, 3))
        refused(DataError, path, "9x7", "8x6", "--resize", "--crop", what=tmp_path, inputs=NCHW)
        refused(
            DataError, path, "9x7", "10x10", "--crop", what=tmp_path, inputs=NCHW, preprocessing=Preprocessing(crop=10)
        )
        other = save_image(tmp_path / "b.png", pixels(9, 8, 3))
        dynamic = [InputSpec("x", F32, ("N", 3, None, None))]
        refused(DataError, other, "9x8", "9x7", "before it", "--resize", what=tmp_path, inputs=dynamic)

    def test_broken_image(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", pixels(8, 6, 3))
        path = save_image(tmp_path / "b.png", pixels(8, 6, 3))
        content = path.read_bytes()
        for damaged in (b"", b"no image", content[: len(content) // 2]):
            path.write_bytes(damaged)
            refused(DataError, path, "cannot be read", what=tmp_path, inputs=NCHW)

    def test_models_that_images_cannot_feed(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", pixels(8, 6, 3))
        refused(DataError, tmp_path, "2", ".npz", what=tmp_path, inputs=PAIR)
        refused(DataError, tmp_path, "4 axes", "[N, 4]", what=tmp_path)
        refused(DataError, tmp_path, "takes 4", what=tmp_path, inputs=[InputSpec("x", F32, ("N", 4, 8, 6))])
        refused(ConfigError, "'gray'", "takes 3", what=tmp_path, inputs=NCHW, preprocessing=Preprocessing(color="gray"))

    def test_labels_csv(self, tmp_path: Path) -> None:
        for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
            save_image(tmp_path / name, np.full((8, 6, 3), i, np.uint8))
        table = tmp_path / "labels.csv"
        table.write_text("note,file, label\nlast,sub/c.png, 7\nfirst,a.png,4\n")
        source = open_data(tmp_path, NCHW, Preprocessing(scale=1))
        assert label_list(source) == [4, 7]
        assert whole(source)[:, 0, 0, 0].tolist() == [0, 2]
        assert label_list(open_data(tmp_path, NCHW, labels=[1, 0])) == [1, 0]

        table.write_text("file,label\na.png,4\ngone.png,1\n")
        refused(DataError, tmp_path, "'gone.png'", "labels.csv", what=tmp_path, inputs=NCHW)
        table.write_text("file,label\na.png,4\nb.png,cat\n")
        refused(DataError, table, "line 3", "'b.png'", "'cat'", what=tmp_path, inputs=NCHW)
        table.write_text("file,label\na.png,4\na.png,5\n")
        refused(DataError, table, "twice", what=tmp_path, inputs=NCHW)
        table.write_text("name,class\na.png,4\n")
        refused(DataError, table, "file,label", what=tmp_path, inputs=NCHW)
        table.write_text("file,label\n")
        refused(DataError, table, "lists no files", what=tmp_path, inputs=NCHW)
        table.write_bytes(b"\xff\xfe\x00")
        refused(DataError, table, "cannot be read", what=tmp_path, inputs=NCHW)

    @pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
    @pytest.mark.parametrize(
        ("file", "label"),
        [("filename", "class"), ("image", "target"), ("path", "Label"), ("File_Name", "labels"), ("file", "label")],
    )
    def test_tables_as_they_are_found(self, tmp_path: Path, separator: str, file: str, label: str) -> None:
        for i, name in enumerate(["a.png", "sub/c d.png", "sub/b.png"]):
            save_image(tmp_path / name, np.full((8, 6, 3), i, np.uint8))
        rows = [("id", file, label), ("7", "./sub/c d.png", "3"), ("8", "a.png", "12"), ("9", "sub/b.png", "0")]
        (tmp_path / "labels.csv").write_text("\r\n".join(separator.join(row) for row in rows))
        source = open_data(tmp_path, NCHW, Preprocessing(scale=1))
        assert label_list(source) == [12, 0, 3]
        assert whole(source)[:, 0, 0, 0].tolist() == [0, 2, 1]

    def test_names_of_classes_in_a_table_are_numbered_as_folders_are(self, tmp_path: Path) -> None:
        for name in ("1.png", "2.png", "3.png", "4.png"):
            save_image(tmp_path / name, pixels(8, 6, 3))
        table = tmp_path / "labels.csv"
        table.write_text("file,label\n1.png,dog\n2.png,ant\n3.png,cat\n4.png,dog\n")
        assert label_list(open_data(tmp_path, NCHW)) == [2, 0, 1, 2]
        for wrong in ("1.5", "-1", "", "nan"):
            table.write_text(f"file,label\n1.png,dog\n2.png,{wrong}\n")
            refused(DataError, table, "line 2", "'dog'", "whole number", what=tmp_path, inputs=NCHW)
        table.write_text("file,label\n1.png\n")
        refused(DataError, table, "line 2", "''", what=tmp_path, inputs=NCHW)

    def test_a_table_beside_the_folder(self, tmp_path: Path) -> None:
        folder, table = tmp_path / "val", tmp_path / "val.csv"
        for i, name in enumerate(["a.png", "b.png", "c.png"]):
            save_image(folder / name, np.full((8, 6, 3), i, np.uint8))
        (folder / "labels.csv").write_text("file,label\na.png,1\nb.png,2\n")
        table.write_text("file,label\nc.png,5\na.png,4\n")
        for source in (
            open_data(folder, NCHW, Preprocessing(scale=1), labels=table),
            open_data((folder, table), NCHW, Preprocessing(scale=1)),
        ):
            assert label_list(source) == [4, 5]
            assert whole(source)[:, 0, 0, 0].tolist() == [0, 2]
        refused(
            DataError, "'gone.png'", "val.csv", what=(folder, write(table, "file,label\ngone.png,1\n")), inputs=NCHW
        )
        refused(DataError, "a table lists image files", what=(numbers(2, 4)), labels=table)
        np.save(tmp_path / "y.npy", np.array([3, 1]))
        assert label_list(open_data((folder, tmp_path / "y.npy"), NCHW)) == [3, 1]

    def test_a_limit_takes_all_classes_of_a_sorted_folder(self, tmp_path: Path) -> None:
        for label in range(5):
            for number in range(7):
                save_image(tmp_path / f"class{label}" / f"{number}.png", pixels(8, 6, 3))
        labels = label_list(open_data(tmp_path, NCHW, limit=11))
        assert len(labels) == 11
        assert labels == sorted(labels)
        assert {labels.count(label) for label in range(5)} == {2, 3}

    def test_labels_from_folders(self, tmp_path: Path) -> None:
        for name in ("dog/1.png", "cat/2.png", "cat/deep/3.png"):
            save_image(tmp_path / name, pixels(8, 6, 3))
        (tmp_path / "ant").mkdir()
        assert label_list(open_data(tmp_path, NCHW)) == [1, 1, 2]
        save_image(tmp_path / "loose.png", pixels(8, 6, 3))
        assert not open_data(tmp_path, NCHW).has_labels

    def test_decoded_when_read(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            save_image(tmp_path / name, pixels(8, 6, 3))
        source = open_data(tmp_path, NCHW)
        (tmp_path / "b.png").unlink()
        batches = source.batches(1)
        assert next(batches).feeds["x"].shape == (1, 3, 8, 6)
        with pytest.raises(DataError, match=r"b\.png"):
            next(batches)
        with pytest.raises(DataError, match=r"b\.png"):
            source.digest()


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
