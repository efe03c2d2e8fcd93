"""The images that networks are trained on: arrays, grids and folders."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from training_cases import models, pixels, torch  # noqa: F401 - fixtures


class TestData:
    def test_arrays_in_both_layouts(self, models, pixels, tmp_path):
        read = models("image_data").read
        with np.load(pixels) as arrays:
            np.savez(tmp_path / "other.npz", image=arrays["x"].transpose(0, 3, 1, 2), label=arrays["y"])
            expected = arrays["x"].transpose(0, 3, 1, 2)
        for path in (pixels, tmp_path / "other.npz"):
            found = read(path, "train")
            np.testing.assert_array_equal(found.image, expected)
            assert found.label.dtype == torch.int64

    def test_grids(self, models, tmp_path):
        rng = np.random.default_rng(1)
        tiles = rng.integers(0, 256, (2, 100, 32, 32, 3), dtype=np.uint8)  # two rows of a hundred
        grid = tiles.transpose(0, 2, 1, 3, 4).reshape(64, 3200, 3)
        for name, part in (("cifar10_test", "test"), ("cifar10_train_0", "train"), ("cifar10_train_1", "train")):
            Image.fromarray(grid).save(tmp_path / f"{name}.webp", lossless=True, exact=True)
            count = 400 if part == "train" else 200
            np.save(tmp_path / f"cifar10_{part}_labels.npy", (np.arange(count) % 10).astype(np.uint8))
        found = models("image_data").read(tmp_path, "train")
        assert found.image.shape == (400, 3, 32, 32)
        np.testing.assert_array_equal(found.image[:200], tiles.reshape(200, 32, 32, 3).transpose(0, 3, 1, 2))
        assert len(models("image_data").read(tmp_path, "test").label) == 200

    def test_grids_are_read_in_the_order_of_their_numbers(self, models, tmp_path):
        for number in range(11):
            Image.new("RGB", (3200, 32), (number, 0, 0)).save(tmp_path / f"cifar10_train_{number}.webp", lossless=True)
        np.save(tmp_path / "cifar10_train_labels.npy", np.zeros(1100, np.uint8))
        found = models("image_data").read(tmp_path, "train")
        assert found.image[::100, 0, 0, 0].tolist() == list(range(11))

    def test_more_images_than_fit_into_memory(self, models, monkeypatch, tmp_path):
        (tmp_path / "train" / "a").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "train" / "a" / "1.png")
        data = models("image_data")
        monkeypatch.setattr(data, "memory", lambda: 2 * 3 * 32 * 32)
        assert len(data.read(tmp_path, "train").label) == 1
        with pytest.raises(ValueError, match=r"train': 1 images of 33 x 33 take 0 GB, this machine has 0 GB: put"):
            data.read(tmp_path, "train", side=33)

    def test_memory_of_this_machine(self, models):
        assert models("image_data").memory() > 2**28

    def test_a_folder_per_class(self, models, tmp_path):
        for label, colour in enumerate(((255, 0, 0), (0, 0, 255))):
            (tmp_path / "train" / f"class{label}").mkdir(parents=True)
            Image.new("RGB", (40, 40), colour).save(tmp_path / "train" / f"class{label}" / "a.png")
        found = models("image_data").read(tmp_path, "train", side=32)
        assert found.image.shape == (2, 3, 32, 32)
        assert found.image[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
        assert found.label.tolist() == [0, 1]

    def test_images_of_another_size(self, models, tmp_path):
        """An .npz is not resized: the network, and the file that it is exported to, are built for one size."""
        np.savez(tmp_path / "a.npz", x=np.zeros((3, 64, 48, 3), np.uint8), y=np.arange(3))
        for side in (32, 224):
            with pytest.raises(ValueError, match=f"images of 64 x 48, this network takes {side} x {side}: resize them"):
                models("image_data").read(tmp_path / "a.npz", "train", side)

    def test_classes_are_those_of_the_training_images(self, models, tmp_path):
        """A class without test images does not move the numbers of those behind it; one that is new is refused."""
        data = models("image_data")
        for folder in ("train/a", "train/b", "train/c", "test/a", "test/c", "train/.cache"):
            (tmp_path / folder).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / folder / "1.png")
        names = data.class_names(tmp_path)
        assert names == ["a", "b", "c"]
        assert data.read(tmp_path, "train").label.tolist() == [0, 1, 2]
        assert data.read(tmp_path, "test", names=names).label.tolist() == [0, 2]
        (tmp_path / "test" / "d").mkdir()
        with pytest.raises(ValueError, match="has a class 'd' that the training images have not"):
            data.read(tmp_path, "test", names=names)

    def test_labels_of_one_column(self, models, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.zeros((3, 32, 32, 3), np.uint8), y=np.array([[0], [2], [1]]))
        assert models("image_data").read(tmp_path / "a.npz", "train").label.tolist() == [0, 2, 1]

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ([0, 10, 1], "label 10 is outside 0..9: --classes says how many there are"),
            ([0, -1, 1], "label -1 is outside 0..9"),
            ([0.0, 1.0, 2.0], "labels are float64; integers from 0 are needed"),
            ([[0, 1], [1, 0], [0, 1]], r"3 images and labels \[3, 2\]; one label per image"),
            ([0, 1], r"3 images and labels \[2\]; one label per image"),
        ],
    )
    def test_labels_that_are_none(self, models, label, message, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.zeros((3, 32, 32, 3), np.uint8), y=np.array(label))
        with pytest.raises(ValueError, match=message):
            models("image_data").read(tmp_path / "a.npz", "train")

    def test_normalisation(self, models):
        image = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
        expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
        assert models("image_data").normalised(image).flatten().tolist() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("kind", ["npy", "text", "half", "damaged", "objects", "labels"])
    def test_files_of_another_kind(self, models, pixels, kind, tmp_path):
        path, content = tmp_path / "a.npz", pixels.read_bytes()
        if kind == "npy":
            np.save(tmp_path / "a.npy", np.zeros(3))
            path = tmp_path / "a.npy"
        elif kind == "objects":
            np.savez(path, x=np.zeros((3, 32, 32, 3), np.uint8), y=np.array([0, "one", None], object))
        elif kind == "labels":
            Image.new("RGB", (3200, 32)).save(tmp_path / "cifar10_test.webp")
            path = tmp_path / "cifar10_test_labels.npy"
            path.write_text("0 1 2")
        else:
            damaged = content[:1000] + bytes([content[1000] ^ 255]) + content[1001:]
            path.write_bytes({"text": b"hello there", "half": content[: len(content) // 2], "damaged": damaged}[kind])
        message = "is one array without labels" if kind == "npy" else "is damaged, or no file of arrays"
        with pytest.raises(ValueError, match=f"^'{path}' {message}"):
            models("image_data").read(tmp_path if kind == "labels" else path, "test")

    def test_what_lies_beside_the_images_of_a_class(self, models, tmp_path):
        """Other files are left out; what is called an image and is none is named."""
        folder = tmp_path / "train" / "a"
        (folder / "more.png").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "1.PNG", "png")
        for name in (".DS_Store", ".2.png", "notes.txt"):
            (folder / name).write_text("hello there")
        assert len(models("image_data").read(tmp_path, "train").label) == 1
        for content in (b"hello there", (folder / "1.PNG").read_bytes()[:60]):
            (folder / "2.png").write_bytes(content)
            with pytest.raises(ValueError, match=r"2.png' cannot be read as an image: take it out"):
                models("image_data").read(tmp_path, "train")

    def test_grids_of_another_size(self, models, tmp_path):
        np.save(tmp_path / "cifar10_train_labels.npy", np.zeros(100, np.uint8))
        with pytest.raises(ValueError, match=r"has no cifar10_train_0.webp beside its labels"):
            models("image_data").read(tmp_path, "train")
        Image.new("RGB", (3200, 48)).save(tmp_path / "cifar10_train_0.webp")
        with pytest.raises(ValueError, match=r"train_0.webp' is 3200 x 48; rows of 100 images of 32 x 32 are needed"):
            models("image_data").read(tmp_path, "train")

    def test_what_is_no_data_is_named(self, models, tmp_path):
        read = models("image_data").read
        with pytest.raises(ValueError, match="has no 'train' images"):
            read(tmp_path, "train")
        np.savez(tmp_path / "odd.npz", a=np.zeros(3))
        with pytest.raises(ValueError, match="has arrays a; x or image"):
            read(tmp_path / "odd.npz", "train")
        np.savez(tmp_path / "float.npz", x=np.zeros((3, 4, 4, 3)), y=np.zeros(3))
        with pytest.raises(ValueError, match="uint8"):
            read(tmp_path / "float.npz", "train")
