"""Augmentation of the training scripts: operations against PIL, draws against the table of the policy."""

import importlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

torch = pytest.importorskip("torch")

MODELS = Path(__file__).parents[1] / "models"
FILL = (10.0, 20.0, 30.0)
COLOUR = (10, 20, 30)


@pytest.fixture
def ops(monkeypatch):
    monkeypatch.syspath_prepend(MODELS)
    return importlib.import_module("image_operations")


@pytest.fixture
def augment(monkeypatch):
    monkeypatch.syspath_prepend(MODELS)
    return importlib.import_module("augment")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(height=32, width=32):
    """Noise, wide, narrow and of few levels; gradients; one colour; two levels: uint8 [12, 3, height, width]."""
    rng = np.random.default_rng(0)
    shape = (3, height, width)
    row, column = np.mgrid[:height, :width]
    found = [rng.integers(0, 256, shape) for _ in range(4)]
    found += [rng.choice([7, 90, 200], shape), rng.integers(30, 90, shape), 255 - rng.integers(0, 3, shape)]
    found += [np.stack([row * 255 // height, column * 255 // width, (row + column) * 2])]
    found += [np.clip(rng.normal(100, 25, shape), 0, 255), rng.beta(0.3, 0.3, shape) * 255]
    found += [np.full(shape, 77), np.stack([np.full((height, width), 9), row % 2 * 255, row * 0])]
    return torch.from_numpy(np.stack(found).astype(np.uint8))


def each(pil, images):
    """A function of PIL on each image of a batch."""
    done = [np.asarray(pil(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return np.stack(done).transpose(0, 3, 1, 2)


def apply(ops, images, name, amount, fill=FILL):
    kind = torch.full((len(images),), ops.OPERATIONS.index(name))
    done = ops.apply(images, kind, torch.full((len(images),), float(amount), dtype=torch.float64), fill)
    assert done.dtype == torch.uint8
    assert done.shape == images.shape
    return done


def affine(*matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=COLOUR)


FACTORS = [0.1, 0.4, 0.7, 1.0, 1.2, 1.9]
LEVELS = [
    ("Invert", 0, lambda image, _: ImageOps.invert(image), 0),
    ("Equalize", 0, lambda image, _: ImageOps.equalize(image), 0),
    ("AutoContrast", 0, lambda image, _: ImageOps.autocontrast(image), 1),
    *[("Posterize", bits, ImageOps.posterize, 0) for bits in range(1, 9)],
    *[("Solarize", level, ImageOps.solarize, 0) for level in (0, 28.4, 100, 256)],
    *[
        (name, factor, lambda image, factor, name=name: getattr(ImageEnhance, name)(image).enhance(factor), 1)
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
        for factor in FACTORS
    ],
]


@pytest.mark.parametrize("size", [(32, 32), (20, 33), (5, 7)])
class TestOperation:
    @pytest.mark.parametrize("case", LEVELS, ids=lambda case: f"{case[0]}-{case[1]}")
    def test_of_levels_is_that_of_pil(self, ops, size, case):
        name, amount, pil, levels = case
        images = pictures(*size)
        got, expected = apply(ops, images, name, amount).numpy(), each(lambda image: pil(image, amount), images)
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= levels
        assert np.mean(difference > 0) < 0.02

    @pytest.mark.parametrize("amount", [-0.3, -0.1, 0.0, 0.07, 0.2, 0.3])
    def test_of_shear_and_translation_is_that_of_pil(self, ops, size, amount):
        images, (height, width) = pictures(*size), size
        for name, matrix in {
            "ShearX": (1, amount, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, amount, 1, 0),
            "TranslateX": (1, 0, amount * width, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, amount * height),
        }.items():
            np.testing.assert_array_equal(apply(ops, images, name, amount), each(affine(*matrix), images), name)

    @pytest.mark.parametrize("degrees", [-30, -13.3, 0, 6.7, 20, 45])
    def test_of_rotation_is_that_of_pil(self, ops, size, degrees):
        images = pictures(*size)
        expected = each(lambda image: image.rotate(degrees, fillcolor=COLOUR), images)
        np.testing.assert_array_equal(apply(ops, images, "Rotate", degrees), expected)

    def test_of_whole_pixels_moves_by_them(self, ops, size):
        images = pictures(*size)
        moved = apply(ops, images, "TranslateX", 3 / size[1])
        assert torch.equal(moved[..., :-3], images[..., 3:])
        assert torch.equal(moved[..., -3:], torch.tensor(COLOUR).byte().view(3, 1, 1).expand(moved[..., -3:].shape))
        assert torch.equal(apply(ops, images, "TranslateY", -2 / size[0])[:, :, 2:], images[:, :, :-2])

    def test_identity_changes_nothing(self, ops, size):
        assert torch.equal(apply(ops, pictures(*size), "Identity", 5), pictures(*size))


def test_quarter_turn(ops):
    images = pictures()
    assert torch.equal(apply(ops, images, "Rotate", 90), images.rot90(1, (2, 3)))


def test_each_image_has_its_own_operation(ops):
    images = pictures().repeat(2, 1, 1, 1)[: len(ops.OPERATIONS)]
    kind = torch.arange(len(ops.OPERATIONS))
    amount = torch.linspace(0.1, 0.9, len(kind), dtype=torch.float64)
    together = ops.apply(images, kind, amount, FILL)
    for place, name in enumerate(ops.OPERATIONS):
        alone = apply(ops, images[place : place + 1], name, amount[place])
        assert torch.equal(together[place : place + 1], alone), name


def test_operations_read_nothing_back_to_the_host(ops):
    """A tensor on the meta device has no values: what looks at them fails."""
    images, kind, amount = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in [((4, 3, 8, 8), torch.uint8), ((4,), torch.int64), ((4,), torch.float64)]
    )
    assert ops.apply(images, kind, amount, FILL).shape == images.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        images[kind == 0]


class TestPolicy:
    def test_is_well_formed(self, augment, ops):
        assert len(augment.POLICY) == 25
        assert set(augment.RANGES) == set(ops.OPERATIONS) - {"Identity"}
        for pair in augment.POLICY:
            assert len(pair) == 2
            assert all(0 <= p <= 1 and m in range(10) for _, p, m in pair)

    def test_amounts_end_where_the_ranges_of_the_paper_do(self, augment):
        ends = {name: start + span for name, (start, span, _) in augment.RANGES.items()}
        assert ends["Rotate"] == 30
        assert ends["Posterize"] == 4
        assert ends["Solarize"] == 0
        assert ends["ShearX"] == ends["ShearY"] == 0.3
        assert ends["Color"] == ends["Contrast"] == ends["Brightness"] == ends["Sharpness"] == 1.9
        assert ends["TranslateX"] == ends["TranslateY"] == 150 / 331

    def test_draws_follow_the_table(self, augment, ops):
        count = 50_000
        kind, amount = augment.draw_policy(count, seeded())
        drawn = [
            Counter((ops.OPERATIONS[k], round(a, 6)) for k, a in zip(*pair, strict=True))
            for pair in zip(kind.tolist(), amount.tolist(), strict=True)
        ]
        for place in (0, 1):
            expected = Counter()
            for pair in augment.POLICY:
                name, probability, magnitude = pair[place]
                start, span, signed = augment.RANGES[name]
                for sign in (1, -1) if signed else (1,):
                    amounts = round(start + sign * span * magnitude / 9, 6)
                    expected[name, amounts] += probability / 25 / (2 if signed else 1)
            found = {key: number for key, number in drawn[place].items() if key[0] != "Identity"}
            assert set(found) <= set(expected)
            for key, p in expected.items():
                assert abs(found.get(key, 0) - count * p) <= 5 * math.sqrt(count * p * (1 - p)), key

    def test_both_operations_are_of_one_sub_policy(self, augment, ops):
        kind, _ = augment.draw_policy(5000, seeded())
        pairs = {(first, second) for (first, _, _), (second, _, _) in augment.POLICY}
        both = {
            (ops.OPERATIONS[first], ops.OPERATIONS[second])
            for first, second in kind.T.tolist()
            if first and second  # not the Identity
        }
        assert both == pairs - {("Solarize", "Invert")}  # whose second probability is 0


class TestAugment:
    def test_keeps_shape_and_type(self, augment):
        for size in [(32, 32), (20, 33)]:
            images = pictures(*size)
            before = images.clone()
            done = augment.augment(images, seeded())
            assert done.shape == images.shape
            assert done.dtype == torch.uint8
            assert torch.equal(images, before)
        assert augment.augment(images[:0], seeded()).shape == (0, 3, 20, 33)

    def test_is_determined_by_the_seed(self, augment):
        images = pictures()
        first, again, other = (augment.augment(images, seeded(seed)) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_each_image_has_its_own_draw(self, augment):
        images = pictures()[:1].expand(200, -1, -1, -1)
        done = augment.augment(images, seeded())
        assert len({image.numpy().tobytes() for image in done}) > 195

    def test_an_image_does_not_change_another(self, augment):
        images = pictures()
        changed = images.clone()
        changed[3] = 255 - changed[3] // 2
        first, second = augment.augment(images, seeded()), augment.augment(changed, seeded())
        same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
        assert same == [place != 3 for place in range(len(images))]

    def test_is_its_parts_in_order(self, augment, ops):
        images, generator = pictures(), seeded(7)
        done = augment.augment(images, seeded(7), cutout=6, fill=FILL)
        images = augment.random_flip(augment.random_crop(images, generator, 4), generator)
        kind, amount = augment.draw_policy(len(images), generator)
        for step in (0, 1):
            images = torch.cat(
                [
                    apply(ops, image[None], ops.OPERATIONS[k], a)
                    for image, k, a in zip(images, kind[step], amount[step], strict=True)
                ]
            )
        assert torch.equal(done, augment.random_cutout(images, generator, 6, FILL))

    def test_does_nothing_when_all_is_off_but_the_flip(self, augment):
        images = pictures()
        done = augment.augment(images, seeded(), policy=False, cutout=0, padding=0)
        flipped = [torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(done, images, strict=True)]
        assert 0 < sum(flipped) < len(images)
        kept = [torch.equal(a, b) for a, b in zip(done, images, strict=True)]
        assert all(one or other for one, other in zip(flipped, kept, strict=True))

    @pytest.mark.parametrize(
        ("shape", "dtype"), [((2, 3, 8, 8), torch.float32), ((2, 1, 8, 8), torch.uint8), ((3, 8, 8), torch.uint8)]
    )
    def test_refuses_other_images(self, augment, shape, dtype):
        with pytest.raises(ValueError, match=r"needs uint8 \[N, 3, H, W\]"):
            augment.augment(torch.zeros(shape, dtype=dtype), seeded())


def test_crop_is_a_window_of_the_padded_image(augment):
    images = pictures(12, 9)[:1].expand(2000, -1, -1, -1)
    padded = np.pad(images[0].numpy(), [(0, 0), (2, 2), (2, 2)])
    windows = {
        padded[:, row : row + 12, column : column + 9].tobytes(): (row, column)
        for row in range(5)
        for column in range(5)
    }
    places = Counter(windows[image.numpy().tobytes()] for image in augment.random_crop(images, seeded(), 2))
    assert len(places) == 25
    assert min(places.values()) > 40  # 80 are expected
    assert max(places.values()) < 120


def test_flip_is_drawn_for_half_of_the_images(augment):
    images = pictures()[:1].expand(1000, -1, -1, -1)
    done = augment.random_flip(images, seeded())
    flipped = (done == images.flip(3)).flatten(1).all(1)
    assert torch.equal(~flipped, (done == images).flatten(1).all(1))
    assert 420 < flipped.sum() < 580


@pytest.mark.parametrize("size", [1, 5, 8])
def test_cutout_is_one_square_clipped_at_the_border(augment, size):
    images = torch.full((4000, 3, 16, 12), 200, dtype=torch.uint8)
    done = augment.random_cutout(images, seeded(), size, FILL)
    cut = (done != 200).any(1)
    assert torch.equal(done, torch.where(cut[:, None], torch.tensor(COLOUR).byte().view(3, 1, 1), images))
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None])
    for side, inside in ((16, rows), (12, columns)):
        places = {tuple(np.flatnonzero(line)) for line in inside.numpy()}
        starts = range(-(size // 2), side - size // 2)  # its centre is any pixel
        assert places == {tuple(p for p in range(start, start + size) if 0 <= p < side) for start in starts}


def test_cutout_may_come_after_normalisation(augment):
    images = torch.rand(50, 3, 8, 8) + 1
    done = augment.random_cutout(images, seeded(), 4)
    assert done.dtype == torch.float32
    assert torch.equal(done[done != 0], images[done != 0])
    assert ((done == 0).flatten(1).sum(1) >= 3 * 4).all()  # in a corner a quarter is left
