"""Images and folders of them as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_cases import F32, NCHW, NHWC, PAIR, label_list, numbers, pixels, refused, save_image, whole, write
from PIL import Image

from ftbc_onnx.data import InputSpec, open_data
from ftbc_onnx.errors import ConfigError, DataError
from ftbc_onnx.preprocessing import Preprocessing


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

    def test_whole_numbers_with_a_point(self, tmp_path: Path) -> None:
        """As pandas writes a column that once had a gap."""
        save_image(tmp_path / "a.png", pixels(8, 6, 3))
        save_image(tmp_path / "b.png", pixels(8, 6, 3))
        write(tmp_path / "labels.csv", "file,label\na.png,1.0\nb.png,12.0\n")
        assert label_list(open_data(tmp_path, NCHW)) == [1, 12]
        write(tmp_path / "labels.csv", "file,label\na.png,1.5\nb.png,12.0\n")
        refused(DataError, "label '1.5'", what=tmp_path, inputs=NCHW)

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

    def test_what_may_be_a_surprise_is_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def said(*files: str) -> str:
            caplog.clear()
            for file in files:
                save_image(tmp_path / file, pixels(8, 6, 3))
            open_data(tmp_path, NCHW)
            return "".join(record.getMessage() for record in caplog.records)

        assert said("b/1.png", "c/2.png") == ""
        (tmp_path / "a").mkdir()
        assert "the folder 'a' has no images, and counts as class 0 of 3 all the same" in said()
        assert "'loose.png' is in none of the 3 folders, so there are no labels" in said("loose.png")

    def test_numbers_as_names_of_folders(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for number in range(9, 12):
            save_image(tmp_path / f"{number}/1.png", pixels(8, 6, 3))
        assert label_list(open_data(tmp_path, NCHW)) == [0, 1, 2]
        assert "by the folders' names as text, so '10' is class 0" in caplog.text

    def test_links_to_folders_are_followed(self, tmp_path: Path) -> None:
        for name in ("here/a", "there/b"):
            save_image(tmp_path / name / "1.png", pixels(8, 6, 3))
        (tmp_path / "here/b").symlink_to(tmp_path / "there/b")
        (tmp_path / "here/b/up").symlink_to(tmp_path / "there")
        (tmp_path / "here/a/round").symlink_to(tmp_path / "here")
        assert label_list(open_data(tmp_path / "here", NCHW)) == [0, 1]

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
