"""How large a network is, and what is bounded by it: batches that nobody asked for, searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run
from networks import QCFS, RELU, THRESHOLDS, digits, inputs, network_of, plan_of, residual, source_of

from ftbc_onnx import ConversionResult, batching, convert, planning, selection
from ftbc_onnx.batching import choose_batching
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit.search import Candidate, emit_search, errors_name
from ftbc_onnx.network_size import count_neurons
from ftbc_onnx.rules import ROUGH
from ftbc_onnx.runtime import CPU
from ftbc_onnx.selection import search_sites

TEXT = "g (float[{0},2,{1},{2}] x) => (float[{0},3,{1},{2}] y) {{ a = Relu(x) b = Conv(a, w) y = Relu(b) }}"


def model(*axes: int | str) -> onnx.ModelProto:
    return parse(TEXT.format(*axes), w=numbers(3, 2, 1, 1))


class TestNeurons:
    @pytest.mark.parametrize("axes", [("N", 6, 5), ("N", "H", "W"), (4, 6, 5)], ids=["free", "no axis known", "fixed"])
    def test_they_are_counted_per_sample(self, axes: tuple[int | str, ...]) -> None:
        ann = model(*axes)
        source = source_of(ann, x=numbers(5, 2, 6, 5))
        assert list(count_neurons(network_of(ann), source, CPU).values()) == [60, 90]

    def test_fewer_samples_than_a_fixed_batch_are_enough(self) -> None:
        ann = model(4, 6, 5)
        assert list(count_neurons(network_of(ann), source_of(ann, x=numbers(1, 2, 6, 5)), CPU).values()) == [60, 90]

    def test_none_without_samples(self) -> None:
        ann = model("N", 6, 5)
        assert count_neurons(network_of(ann), source_of(ann, x=numbers(1, 2, 6, 5)).subset([]), CPU) == {}

    def test_without_data_a_random_sample_is_counted(self) -> None:
        known, open_ = (
            convert(model_, None, steps=2, verify=False).report["neurons"] for model_ in (QCFS, free_axes(QCFS))
        )
        assert known > 0
        assert open_ == 0


def free_axes(path: Path) -> bytes:
    """A network of the file with every axis of its input open."""
    ann = onnx.load(path)
    for axis in ann.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.ClearField("dim_value")
        axis.dim_param = f"axis{axis.ByteSize()}"
    return ann.SerializeToString()


class TestBatches:
    """Of a network whose activations are large nobody gets 128 samples a run without asking."""

    @pytest.mark.parametrize(("wanted", "size"), [(None, 6), (20, 20)])
    def test_large_networks_get_small_ones_unless_asked(
        self, monkeypatch: pytest.MonkeyPatch, wanted: int | None, size: int
    ) -> None:
        monkeypatch.setattr(batching, "_NEURONS", 1000)
        ann = model("N", 6, 5)
        source = source_of(ann, x=numbers(40, 2, 6, 5))
        assert choose_batching(wanted, None, source, None, "evaluation", neurons=150).size == size
        assert choose_batching(wanted, None, source, None, "evaluation", neurons=2000).size == (wanted or 1)

    @pytest.mark.parametrize(("cores", "size"), [(0, 40), (1, 2), (4, 8), (100, 20)])
    def test_what_only_judges_stays_in_the_cache_of_its_cores(
        self, monkeypatch: pytest.MonkeyPatch, cores: int, size: int
    ) -> None:
        monkeypatch.setattr(batching, "_NEURONS", 2000 if cores else 8000)
        monkeypatch.setattr(batching, "_CACHED", 200)
        ann = model("N", 6, 5)
        source = source_of(ann, x=numbers(40, 2, 6, 5))
        assert choose_batching(None, None, source, None, "evaluation", neurons=100, cores=cores).size == size
        assert choose_batching(30, None, source, None, "evaluation", neurons=100, cores=cores).size == 30

    def test_judges_in_small_batches_what_it_calibrates_in_large_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, labels = digits("calibration")
        seen: dict[str, set[int]] = {"whole": set(), "padded": set()}
        for name, sizes in seen.items():
            original = getattr(batching.Batching, name)

            def watched(self: batching.Batching, *args: Any, original: Any = original, sizes: Any = sizes) -> Any:
                sizes.add(self.size)
                return original(self, *args)

            monkeypatch.setattr(batching.Batching, name, watched)

        def convert_digits(**more: Any) -> ConversionResult:
            for sizes in seen.values():
                sizes.clear()
            options = {"steps": 2, "neuron": "if", "threads": 1, "verify": False, **more}
            return convert(RELU, images[:64], eval_data=(images[:32], labels[:32]), **options)

        whole = convert_digits()
        assert seen == {"whole": {32, 48}, "padded": {1, 16, 32}}  # 1: its neurons are counted
        monkeypatch.setattr(batching, "_CACHED", 5 * whole.report["neurons"])
        parts = convert_digits()
        assert seen == {"whole": {32, 48}, "padded": {1, 5}}
        for name, bias in whole.plan.biases.items():
            np.testing.assert_array_equal(parts.plan.biases[name], bias)
        assert parts.report["evaluation"]["accuracy"] == whole.report["evaluation"]["accuracy"]
        published = convert_digits(rule="paper", batch_size=24)  # a batch for the rule
        assert seen == {"whole": {24}, "padded": {1, 5}}
        monkeypatch.setattr(batching, "_CACHED", 100 * whole.report["neurons"])
        again = convert_digits(rule="paper", batch_size=24)
        assert seen == {"whole": {24}, "padded": {1, 16, 24}}
        assert again.report["evaluation"]["accuracy"] == published.report["evaluation"]["accuracy"]

    def test_a_conversion_and_its_file_keep_to_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        images, labels = digits("calibration")
        seen: list[int] = []
        original = batching.Batching.padded

        def watched(self: batching.Batching, *args: Any) -> Any:
            seen.append(self.size)
            return original(self, *args)

        neurons = convert(RELU, images[:32], steps=2, neuron="if", verify=False).report["neurons"]
        monkeypatch.setattr(batching, "_NEURONS", 8 * neurons)
        monkeypatch.setattr(batching.Batching, "padded", watched)
        result = convert(RELU, images[:32], steps=2, neuron="if", verify=False, eval_data=(images[:20], labels[:20]))
        assert max(seen) == 8
        assert result.report["calibration"]["batches"] == 3  # 24 samples fitted to
        path = tmp_path / "snn.onnx"
        result.save(path)
        for cached, threads, size in ((1 << 21, None, 8), (3 * neurons, 2, 6)):
            monkeypatch.setattr(batching, "_CACHED", cached)
            del seen[:]
            evaluate_file(path, (images[:20], labels[:20]), threads=threads)
            assert seen == [size]


class TestSearch:
    def test_groups_of_sites_find_what_all_at_once_find(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = network_of(residual())
        plan = plan_of(network, THRESHOLDS, 4)
        tried = {s.name: [Candidate(plan.thresholds[s.name] * f) for f in (1.0, 3.0, 0.3)] for s in plan.sites}
        opened: list[Mapping[str, Sequence[Candidate]]] = []

        def emit(*args: Any) -> onnx.ModelProto:
            opened.append(args[2])
            return emit_search(*args)

        monkeypatch.setattr(selection, "emit_search", emit)
        feeds = {"x": inputs(24, seed=5)}
        once = search_sites(network, plan, tried, feeds, CPU, rule=ROUGH)
        assert len(opened) == 1
        monkeypatch.setattr(selection, "SEARCHED", 1)
        neurons = count_neurons(network, source_of(network.view.model, x=feeds["x"]), CPU)
        assert search_sites(network, plan, tried, feeds, CPU, rule=ROUGH, neurons=neurons) == once
        assert [sum(len(c) > 1 for c in group.values()) for group in opened[1:]] == [1] * len(plan.sites)
        whole = run(emit_search(network, plan, tried, ROUGH), feeds)
        for name, group in zip(tried, opened[1:], strict=True):
            found = run(emit_search(network, plan, group, ROUGH), feeds)
            np.testing.assert_array_equal(found[errors_name(name)], whole[errors_name(name)])
        assert len(set(once.values())) > 1

    def test_no_group_has_more_neurons_than_are_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = network_of(residual())
        plan = plan_of(network, THRESHOLDS, 2)
        tried = {s.name: [Candidate(plan.thresholds[s.name] * f) for f in (1.0, 3.0, 0.3)] for s in plan.sites}
        feeds = {"x": inputs(4, seed=5)}
        neurons = count_neurons(network, source_of(network.view.model, x=feeds["x"]), CPU)
        held: list[int] = []

        def emit(*args: Any) -> onnx.ModelProto:
            held.append(4 * sum(len(c) * neurons[name] for name, c in args[2].items()))
            return emit_search(*args)

        monkeypatch.setattr(selection, "emit_search", emit)
        whole = 4 * 3 * sum(neurons.values())
        for allowed, groups in ((whole, 1), (whole - 1, 2)):
            del held[:]
            monkeypatch.setattr(selection, "SEARCHED", allowed)
            search_sites(network, plan, tried, feeds, CPU, rule=ROUGH, neurons=neurons)
            assert len(held) == groups
            assert max(held) <= allowed

    def test_large_networks_are_searched_with_few_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thresholds with all fitted to, the gate with all held back; of a large network with 8."""
        rows: list[int] = []
        original = selection.search_sites

        def watched(*args: Any, **options: Any) -> dict[str, int]:
            rows.append(len(next(iter(args[3].values()))))
            return original(*args, **options)

        for room in (planning, selection):
            monkeypatch.setattr(room, "search_sites", watched)
        images = digits("calibration")[0][:128]
        convert(RELU, images, steps=2, neuron="if", verify=False)
        monkeypatch.setattr(planning, "SEARCHED", 1)
        convert(RELU, images, steps=2, neuron="if", verify=False)
        assert rows == [32, 32, 8, 8]
