"""Which samples are taken, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from data_cases import FLAT, label_list, numbers, whole

from ftbc_onnx.data import open_data


class TestOrder:
    def test_calibration_samples_that_lie_class_by_class_are_mixed(self) -> None:
        x, labels = numbers(200, 4), np.repeat(np.arange(10), 20)
        source = open_data((x, labels), FLAT)
        found = np.array(label_list(source))
        np.testing.assert_array_equal(np.sort(found), labels)
        for part in (found[:10], found[:30], found[2::4]):
            assert np.bincount(part, minlength=10).max() <= 2 * len(part) / 10
        np.testing.assert_array_equal(np.sort(whole(source)[found == 3], axis=0), np.sort(x[labels == 3], axis=0))
        assert label_list(open_data((x, labels), FLAT, purpose="evaluation")) == labels.tolist()

    @pytest.mark.parametrize(
        "labels", [np.arange(60) % 3, np.zeros(60, int), np.random.default_rng(0).integers(0, 3, 60)]
    )
    def test_others_stay_as_they_are(self, labels: np.ndarray) -> None:
        assert label_list(open_data((numbers(60, 4), labels), FLAT)) == labels.tolist()

    def test_one_sample_of_each_class_in_order_is_mixed(self) -> None:
        """As a folder with an image for each of many classes: the first ones are all alike."""
        found = np.array(label_list(open_data((numbers(64, 4), np.arange(64)), FLAT)))
        assert sorted(found) == list(range(64))
        assert np.histogram(found[:16], 4, (0, 64))[0].max() <= 5

    def test_labels_beside_an_iterable_of_which_a_part_is_taken(self) -> None:
        labels = np.arange(32) % 4
        source = open_data(iter([numbers(8, 4)] * 4), FLAT, labels=labels, limit=8)
        assert label_list(source) == labels[::4].tolist()

    def test_batches_of_a_loader_without_labels(self) -> None:
        x = numbers(6, 4)
        np.testing.assert_array_equal(whole(open_data([[x[:3]], (x[3:],)], FLAT)), x)
