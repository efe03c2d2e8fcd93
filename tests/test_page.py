"""The page of a report: what its figures show, that it needs nothing else, that strangers' names stay text."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import CALIBRATION, QCFS, RELU, TEST
from pages import HOSTILE, Page, hostile, large

from ftbc_onnx import convert, page
from ftbc_onnx.errors import ConfigError

pytest.importorskip("matplotlib", reason="pages take the extra 'report'")
pytest.importorskip("jinja2", reason="pages take the extra 'report'")

from matplotlib.figure import Figure
from PIL import Image

from ftbc_onnx.page import series, tables
from ftbc_onnx.page.canvas import LIGHT, PALETTE, plain, to_svg
from ftbc_onnx.page.figures import FIGURES
from ftbc_onnx.page.html import render

T = 4
NAMES = {"accuracy", "error", "gaps", "activity", "thresholds"}
SECTIONS = {"figures", "steps", "sites", "nodes", "conversion", "provenance"}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    options: dict[str, Any] = {"neuron": "if", "threshold": "percentile", "percentile": 97.0, "gain": False}
    made = convert(RELU, CALIBRATION, eval_data=TEST, steps=T, calib_samples=64, **options).report
    return dict(json.loads(json.dumps(made)))


@pytest.fixture(scope="module")
def text(report: dict[str, Any]) -> str:
    return render(report)


def drawn(report: dict[str, Any], name: str) -> Figure:
    """A figure as it is drawn."""
    kind = next(kind for kind in FIGURES if kind.name == name)
    picture = kind.picture(report)
    assert picture is not None
    figure = Figure()
    picture.draw(figure)
    return figure


class TestFigures:
    """What is on them, against the report."""

    @pytest.mark.parametrize(("name", "key", "scale"), [("accuracy", "accuracy", 1), ("error", "output_gap", 100)])
    def test_curves(self, report: dict[str, Any], name: str, key: str, scale: float) -> None:
        lines = {line.get_label(): line for line in drawn(report, name).axes[0].lines}
        for label, part in (("no bias", "evaluation_without_bias"), ("SNN, temporal biases", "evaluation")):
            np.testing.assert_array_equal(lines[label].get_xdata(), np.arange(1, T + 1))
            np.testing.assert_allclose(lines[label].get_ydata(), np.array(report[part][key]) * scale)
        assert ("ANN 100.0 %" in lines) is (name == "accuracy")

    def test_the_ann_is_a_line(self, report: dict[str, Any]) -> None:
        changed = copy.deepcopy(report)
        changed["evaluation"]["ann_accuracy"] = 87.25
        lines = {line.get_label(): line for line in drawn(changed, "accuracy").axes[0].lines}
        assert set(lines["ANN 87.2 %"].get_ydata()) == {87.25}

    def test_agreement_where_there_are_no_labels(self, report: dict[str, Any]) -> None:
        changed = copy.deepcopy(report)
        for key in ("evaluation", "evaluation_without_bias"):
            changed[key]["accuracy"] = changed[key]["ann_accuracy"] = None
        axes = drawn(changed, "accuracy").axes[0]
        assert axes.get_ylabel() == "agrees with the ANN, %"
        np.testing.assert_array_equal(axes.lines[-1].get_ydata(), report["evaluation"]["agreement"])

    def test_gaps_before_and_after(self, report: dict[str, Any]) -> None:
        before, after = drawn(report, "gaps").axes[:2]
        assert (before.get_title(), after.get_title()) == ("no bias", "temporal biases")
        for axes, key in ((before, "evaluation_without_bias"), (after, "evaluation")):
            (image,) = axes.images
            expected = [100 * np.array(site["gap_in_theta"]) for site in report[key]["sites"].values()]
            np.testing.assert_allclose(image.get_array(), expected)
            assert image.norm is before.images[0].norm, "one scale of colours for both"
        assert [label.get_text() for label in before.get_yticklabels()] == [
            f"{i} {site['name']}" for i, site in enumerate(report["sites"], 1)
        ]

    def test_one_network_is_drawn_once(self, report: dict[str, Any]) -> None:
        same = {**report, "evaluation_without_bias": report["evaluation"]}
        assert [axes.get_title() for axes in drawn(same, "gaps").axes] == ["SNN", ""]
        assert [line.get_label() for line in drawn(same, "error").axes[0].lines] == ["SNN"]

    def test_a_gap_that_is_no_number_is_drawn_as_the_worst(self, report: dict[str, Any]) -> None:
        changed = copy.deepcopy(report)
        first = report["sites"][0]["name"]
        changed["evaluation"]["sites"][first]["gap_in_theta"][1] = float("nan")
        before, after = (axes.images[0] for axes in drawn(changed, "gaps").axes[:2])
        assert after.get_array()[0, 1] == after.norm.vmax == np.max(before.get_array())

    def test_rates_and_troubled_channels(self, report: dict[str, Any]) -> None:
        changed = copy.deepcopy(report)
        site = changed["sites"][1]
        site["dead_channels"], site["channels"] = 8, 32
        site["activation"]["saturated_channels"] = 4
        changed["evaluation"]["sites"][site["name"]]["silent_channels"] = 2
        rates, troubled = drawn(changed, "activity").axes
        measured = list(report["evaluation"]["sites"].values())
        np.testing.assert_allclose(rates.lines[0].get_xdata(), [own["rate"] for own in measured])
        ranges = [segment[:, 0] for segment in rates.collections[0].get_segments()]
        np.testing.assert_allclose(ranges, [own["rate_range"] for own in measured])
        kinds = ("dead", "silent", "saturated")
        widths = {kind: bars[1].get_width() for kind, bars in zip(kinds, troubled.containers, strict=True)}
        assert widths == {"dead": 25.0, "silent": 6.25, "saturated": 12.5}

    def test_distributions(self, report: dict[str, Any]) -> None:
        axes = drawn(report, "thresholds").axes[0]
        shares = [site["activation"]["shares"] for site in report["sites"]]
        assert max(sum(row[20:]) for row in shares) > 1e-3, "nothing is above theta: nothing is tested"
        below, above = axes.collections[0], axes.collections[1]
        assert below.get_paths()[0].vertices[:, 0].max() == pytest.approx(1)
        assert above.get_paths()[0].vertices[:, 0].min() == pytest.approx(1)
        highest = 1.5 - below.get_paths()[0].vertices[:, 1].min()
        assert highest == pytest.approx(0.95 * np.log10(100 * max(shares[0][:20]) / 1e-3) / 5)
        texts = [text.get_text() for text in axes.texts]
        assert texts == [f"{100 * site['activation']['clipped']:.1f}" for site in report["sites"]]

    def test_of_very_many_sites_some_have_labels(self, report: dict[str, Any]) -> None:
        labels = drawn(large(report, 300, T), "gaps").axes[0].get_yticklabels()
        assert 60 <= len(labels) <= 80
        assert labels[1].get_text().startswith("5 ")

    def test_a_long_run_has_powers_of_two(self, report: dict[str, Any]) -> None:
        figure = drawn(large(report, 8, 128), "accuracy")
        figure.canvas.draw()
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16", "32", "64", "128"]


class TestColours:
    @staticmethod
    def _contrast(one: str, other: str) -> float:
        """As WCAG 2 defines it."""

        def luminance(colour: str) -> float:
            parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
            return float(linear @ [0.2126, 0.7152, 0.0722])

        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    @pytest.mark.parametrize("name", sorted(set(PALETTE) - {"grid", "paper"}))
    def test_stand_out_in_light_and_dark(self, name: str) -> None:
        for mode in (0, 1):
            assert self._contrast(PALETTE[name][mode], PALETTE["paper"][mode]) >= 4.5

    def test_a_figure_has_none_but_the_page_s(self, report: dict[str, Any]) -> None:
        for kind in FIGURES:
            picture = kind.picture(report)
            svg = to_svg(picture.draw, picture.height, kind.name, picture.label)
            left = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", svg))
            assert left == set()
            assert not any(light in svg for light in LIGHT.values())
            assert "var(--ink)" in svg


class TestPage:
    def test_is_well_formed_and_complete(self, text: str, report: dict[str, Any]) -> None:
        read = Page(text)
        assert set(read.ids) >= SECTIONS | NAMES
        assert read.tags.count("svg") == read.tags.count("figure") == len(NAMES)
        assert text.startswith("<!DOCTYPE html>")
        cells = set(read.text["td"])
        assert {site["name"] for site in report["sites"]} <= cells
        assert {report["source_digest"], report["data_digest"], report["version"]} <= cells
        for curve in ("accuracy", "agreement"):
            assert {f"{value:.2f}" for value in report["evaluation"][curve]} <= cells
        assert read.text["p"][: len(report["summary"])] == [
            re.sub(r"ftbc-onnx [a-z]+|(?<=[ (])--?[A-Za-z][a-z-]*", "", s) for s in report["summary"]
        ]

    def test_loads_nothing(self, text: str) -> None:
        read = Page(text)
        assert not {"script", "link", "iframe", "object", "base", "form", "video", "audio"} & set(read.tags)
        for tag, name, value in read.attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
            assert "url(" not in value.replace("url(#", ""), (tag, name, value)
        assert not re.search(r"url\(|@import|https?:", "".join(read.text["style"]))
        assert "default-src 'none'" in text

    def test_ids_that_are_pointed_at_are_there(self, text: str) -> None:
        read = Page(text)
        pointed = {v[1:] for _, name, v in read.attributes if name.endswith("href") and v.startswith("#")}
        pointed |= set(re.findall(r"url\(#([^)]+)\)", text))
        assert pointed
        assert pointed <= set(read.ids)

    def test_dark_is_for_screens(self, text: str) -> None:
        dark = PALETTE["paper"][1]
        (rule,) = re.findall(r"@media ([^{]*)\{[^}]*" + dark, text)
        assert "screen" in rule
        assert "dark" in rule

    def test_same_report_same_bytes(self, text: str, report: dict[str, Any]) -> None:
        assert render(report) == text

    def test_stays_small(self, text: str, report: dict[str, Any]) -> None:
        assert len(text) < 200_000
        assert len(render(large(report, 60, 128))) < 800_000

    def test_names_of_strangers_stay_text(self, report: dict[str, Any]) -> None:
        text = render(hostile(report))
        read = Page(text)
        assert not {"script", "img"} & set(read.tags)
        for name in HOSTILE[:4]:
            assert plain(name) in read.text["td"]
        assert plain(HOSTILE[1]) in read.text["pre"]
        assert "\x00" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        text.encode("utf-8")
        labels = [label for label in read.text["text"] if label.startswith("3 ")]
        assert labels == [f"3 {plain(HOSTILE[2], 15)}"] * 3
        assert "#1c2126" in " ".join(read.text["text"])
        assert "7 * 7" in " ".join(read.text["p"])

    def test_says_what_is_missing(self, report: dict[str, Any]) -> None:
        changed = {**report, "evaluation": None, "evaluation_without_bias": None, "calibration": None}
        read = Page(render(changed))
        assert read.tags.count("svg") == 1  # thresholds
        assert sum("Not shown." in text for text in read.text["p"]) == 4

    def test_says_what_an_evaluation_has_left_out(self) -> None:
        brief = convert(RELU, CALIBRATION, eval_data=TEST, steps=2, calib_samples=16, compare=False, counting=False)
        read = Page(render(brief.report))
        assert "SNN" in read.text["text"]
        assert "no bias" not in [*read.text["text"], *read.text["th"]]
        assert "events per neuron" not in read.text["th"]

    def test_of_a_network_with_stated_thresholds(self) -> None:
        made = convert(QCFS, eval_data=TEST, steps=2).report
        read = Page(render(made))
        assert "SNN" in read.text["text"]
        assert "no bias" not in read.text["text"]
        assert any("Every threshold is stated" in text for text in read.text["p"])

    def test_pictures_are_png(self, report: dict[str, Any], tmp_path: Path) -> None:
        written = page.write_pictures(report, tmp_path / "new" / "pictures")
        assert {path.stem for path in written} == NAMES
        for path in written:
            with Image.open(path) as image:
                assert image.format == "PNG"
                assert image.width == 800
                assert len(image.convert("L").getcolors()) > 20


def test_layers_that_fire_one_after_another_have_one_result(report: dict[str, Any], text: str) -> None:
    said = "Layer-synchronous: only what is at T has a meaning."
    assert said not in text
    layered = {**report, "synchronous": {"levels": 4, "depth": 4, "latency": 16}}
    assert [kind.name for kind in FIGURES if said in kind.says(layered)] == ["accuracy", "error", "gaps"]
    assert render(layered).count(said) == 3


class TestTables:
    def test_curves_of_a_long_run_are_short(self, report: dict[str, Any]) -> None:
        table = tables.curves(large(report, 4, 100))
        assert [row[0] for row in table.rows] == ["1", "2", "4", "8", "16", "32", "64", "100"]

    def test_energy_if_it_is_there(self, report: dict[str, Any]) -> None:
        assert not any("energy" in row[0] for row in tables.cost({**report, "energy": None}).rows)
        rows = tables.cost({**report, "energy": {"snn": {"pj_per_image": [1.0, 2.5]}, "source": "45 nm"}}).rows
        assert rows[-2:] == [("energy: snn: pj per image", "2.5"), ("energy: source", "45 nm")]

    def test_made_again_by(self, report: dict[str, Any]) -> None:
        assert tables.command({**report, "command": "ftbc-onnx convert x.onnx"}) == "ftbc-onnx convert x.onnx"
        call = tables.command(report)
        assert call.startswith("ftbc_onnx.convert('digits_relu.onnx', 'digits_calibration.npz', steps=4, neuron='if'")
        assert "percentile=97.0" in call
        assert "rule=" not in call
        assert call.endswith(", eval_data='digits_test.npz')")

    def test_made_again_from_what_was_in_memory(self, report: dict[str, Any]) -> None:
        """What has no name stands for itself, and what was done to the samples is said."""
        judged = {**report["evaluation"], "data": "arrays in memory"}
        given = {"evaluation": judged, "data": "arrays in memory", "label_offset": 1, "preprocessing": {"mean": [0.5]}}
        call = tables.command({**report, **given})
        assert call.startswith("ftbc_onnx.convert('digits_relu.onnx', arrays, steps=4")
        assert call.endswith("eval_data=arrays, label_offset=1, preprocessing=ftbc_onnx.Preprocessing(mean=[0.5]))")
        random = tables.command({**report, "random_data": True, "data": "random (seed 0)", "evaluation": None})
        assert random.startswith("ftbc_onnx.convert('digits_relu.onnx', None, steps=4")
        assert "eval_data" not in random

    def test_sites(self, report: dict[str, Any]) -> None:
        row = dict(zip(tables.sites(report).head, tables.sites(report).rows[2], strict=True))
        site = report["sites"][2]
        own = report["evaluation"]["sites"][site["name"]]
        assert row["site"] == site["name"]
        assert row["rate"] == f"{own['rate']:.3f}"
        assert row["gap"] == f"{100 * own['gap_in_theta'][-1]:.2f} %"
        assert row["clipped"] == f"{100 * site['activation']['clipped']:.2f} %"
        assert row["saturated"] == str(site["activation"]["saturated_channels"])


def test_without_the_libraries(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(ConfigError, match=r'takes jinja2: pip install "ftbc-onnx\[report\]"'):
        page.write_page(report, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_nothing_known_is_no_trouble(report: dict[str, Any]) -> None:
    assert series.distributions({**report, "sites": [{**s, "activation": None} for s in report["sites"]]}) is None
