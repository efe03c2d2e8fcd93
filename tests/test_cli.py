"""The command line: what it prints where, and one line with an exit code for whatever is wrong."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from helpers import numbers, parse
from networks import CALIBRATION, QCFS, RELU, TEST, digits, residual
from PIL import Image
from test_runtime import needs_no_cuda

from ftbc_onnx import cli, page, pipeline, planning
from ftbc_onnx.config import RULES, THRESHOLDS
from ftbc_onnx.graph.provenance import read_plan, read_record


class Call(NamedTuple):
    code: int
    out: str
    err: str


Caller = Callable[..., Call]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    """`ftbc-onnx ARGUMENTS` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> Call:
        monkeypatch.setattr(sys, "argv", ["ftbc-onnx", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Call(code, *capsys.readouterr())

    return run


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """`residual` in a file."""
    onnx.save(residual(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """16 samples for it, with labels."""
    np.savez(tmp_path / "data.npz", x=numbers(16, 2, 4, 4), labels=np.arange(16) % 3)
    return tmp_path / "data.npz"


def run_module(*arguments: object) -> Call:
    """`python -m ftbc_onnx ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "ftbc_onnx", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return Call(done.returncode, done.stdout, done.stderr)


def fails(call: Call, code: int, *parts: object) -> str:
    """It failed with this code, nothing on stdout, and one line on stderr that holds every part."""
    assert call.code == code, call
    assert call.out == ""
    (line,) = call.err.splitlines()
    assert line.startswith("ftbc-onnx: error: ")
    for part in parts:
        assert str(part) in line, line
    return line


class TestProcess:
    """In a process of its own, as a user runs it."""

    def test_version(self) -> None:
        assert run_module("--version") == Call(0, f"ftbc-onnx, version {version('ftbc-onnx')}\n", "")

    def test_convert_with_json(self, tmp_path: Path) -> None:
        out = tmp_path / "snn.onnx"
        done = run_module("convert", QCFS, "-T", 2, "-o", out, "--json")
        assert (done.code, done.err) == (0, "")
        report = json.loads(done.out)
        assert report["output"] == str(out)
        assert read_plan(onnx.load(out)).steps == report["steps"] == 2

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        fails(run_module("inspect", tmp_path / "none.onnx"), 3, "none.onnx' does not exist")


class TestHelp:
    def test_version_on_stdout(self, call: Caller) -> None:
        assert call("--version").out.startswith("ftbc-onnx, version ")

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    @pytest.mark.parametrize("command", [[], ["convert"], ["inspect"], ["evaluate"], ["diagnose"], ["report"]])
    def test_has_examples(self, call: Caller, command: list[str], flag: str) -> None:
        done = call(*command, flag)
        assert (done.code, done.err) == (0, "")
        assert "Examples:" in done.out
        assert f"ftbc-onnx {' '.join(command)}" in done.out

    def test_without_a_command(self, call: Caller) -> None:
        done = call()
        assert done.out + done.err != ""
        assert "Commands:" in done.out + done.err
        assert "error" not in done.err

    def test_tells_every_choice_and_default(self, call: Caller) -> None:
        text = call("convert", "-h").out
        for word in (*RULES, *THRESHOLDS, "[default: 8]", "[default: 256]", "[default: solve]", "[default: auto]"):
            assert word in " ".join(text.split())


class TestConvert:
    def test_prints_what_happened_and_writes_beside_the_input(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 3, "--calib-data", data, "--eval-data", data)
        assert (done.code, done.err) == (0, "")
        written = ann.with_name("net.snn_T3.onnx")
        assert f"wrote {written}" in done.out
        assert "T = 3" in done.out
        assert "to the last bit" in done.out
        assert "12 samples of data.npz" in done.out
        assert read_plan(onnx.load(written)).steps == 3

    def test_json_is_the_report_alone(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        done = call("convert", ann, "-T", 3, "--calib-data", data, "--json", "-o", tmp_path / "o.onnx", "-v")
        assert (done.code, done.err) == (0, "")
        report = json.loads(done.out)
        assert report["samples"] == 16
        assert report["options"]["steps"] == 3

    def test_every_option_arrives(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        done = call(
            *("convert", ann, "--calib-data", data, "-o", tmp_path / "o.onnx", "-T", 2, "--calib-samples", 10),
            *("--seed", 5, "--threshold", "percentile", "--percentile", 98.5, "--per-tensor", "--rule", "paper"),
            *("--alpha", 0.25, "--no-verify", "--batch-size", 5, "--device", "cpu", "--neuron", "if", "--running-mean"),
            *("--mean", "0.1,0.2", "--std", "1,2", "--scale", "1/2", "--json"),
        )
        assert done.code == 0, done.err
        report = json.loads(done.out)
        expected = {
            "steps": 2,
            "neuron": "if",
            "threshold": "percentile",
            "percentile": 98.5,
            "per_channel": False,
            "rule": "paper",
            "alpha": 0.25,
            "calib_samples": 10,
            "batch_size": 5,
            "device": "cpu",
            "seed": 5,
            "random_data": False,
            "verify": False,
            "running_mean": True,
        }
        assert expected == {name: report["options"][name] for name in expected}
        assert report["preprocessing"] == {"scale": 0.5, "mean": [0.1, 0.2], "std": [1.0, 2.0]}
        assert report["calibration"]["batches"] == 2
        assert report["verification"] is None

    def test_quiet_prints_the_result_all_the_same(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2, "-q")
        assert (done.code, done.err) == (0, "")
        assert "wrote" in done.out

    def test_percentile_alone_chooses_the_method(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2, "--percentile", 99, "--json")
        assert json.loads(done.out)["options"]["threshold"] == "percentile"

    def test_qcfs_without_data_says_that_there_are_no_biases(self, call: Caller, tmp_path: Path) -> None:
        done = call("convert", QCFS, "-T", 2, "-o", tmp_path / "o.onnx")
        assert (done.code, done.err) == (0, "")
        assert "no biases were calibrated: every temporal bias is zero" in done.out

    def test_random_data_are_marked(self, call: Caller, ann: Path) -> None:
        done = call("convert", ann, "-T", 2, "--random-data", "--calib-samples", 8)
        assert (done.code, done.err) == (0, "")
        assert "calibrated on random data: for a dry run only" in done.out

    def test_random_data_beside_others(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 2, "--random-data", "--calib-data", data)
        fails(done, 2, f"--random-data goes without --calib-data '{data}'")

    def test_verbose_lists_the_sites(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 2, "--calib-data", data, "-v")
        assert done.code == 0
        for name in ("r1", "r2", "r3"):
            assert name in done.out

    def test_same_call_same_bytes(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            assert call("convert", ann, "-T", 2, "--calib-data", data, "-o", tmp_path / name).code == 0
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_data_from_a_script(self, call: Caller, ann: Path, tmp_path: Path) -> None:
        script = tmp_path / "load.py"
        script.write_text("import numpy as np\ndef calib():\n    return np.ones((8, 2, 4, 4), np.float32)\n")
        done = call("convert", ann, "-T", 2, "--calib-data", f"{script}:calib", "--json")
        assert json.loads(done.out)["data"] == "load.py:calib"

    def test_lines_are_broken_by_a_terminal_only(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2)
        (line,) = (line for line in done.out.splitlines() if line.startswith("T = 2, "))
        assert line.endswith("(CPUExecutionProvider)") or "cuda" in line


NAMES = ["conv[bold]/relu", "[/relu]", "a:smiley:b", "[link=x]"]


class TestNames:
    """Files and nodes may be called as they like: nothing in a name is markup."""

    @pytest.mark.parametrize("name", NAMES)
    def test_of_nodes(self, call: Caller, tmp_path: Path, name: str) -> None:
        model = parse("g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }")
        for node in model.graph.node[:2]:
            node.name = f"{name}/{node.op_type}"
        onnx.save(model, tmp_path / "r.onnx")
        for options in ([], ["-v"]):
            out = call("inspect", tmp_path / "r.onnx", *options).out
            assert f"refused Bernoulli '{name}/Bernoulli': its output is random" in out
            assert out.count(f"{name}/Relu") == 1 + len(options)

    @pytest.mark.parametrize("name", [name.replace("/", "") for name in NAMES])
    def test_of_files(self, call: Caller, ann: Path, data: Path, name: str) -> None:
        model, samples = ann.with_name(f"{name}.onnx"), data.with_name(f"{name}.npz")
        ann.rename(model), data.rename(samples)
        done = call("convert", model, "--calib-data", samples, "-T", 2)
        assert (done.code, done.err) == (0, "")
        assert f"{name}.onnx: 3 sites" in done.out
        assert f"12 samples of {name}.npz in 1" in done.out
        assert f"wrote {model.with_name(name)}.snn_T2.onnx" in done.out


class TestInspect:
    def test_lists_sites_and_classes(self, call: Caller) -> None:
        done = call("inspect", RELU)
        assert (done.code, done.err) == (0, "")
        for word in ("node_relu_3", "linear", "unrolled form at T = 8"):
            assert word in done.out

    def test_json(self, call: Caller) -> None:
        done = call("inspect", QCFS, "--json", "-T", 4)
        report = json.loads(done.out)
        assert [site["levels"] for site in report["sites"]] == [4] * 4
        assert report["steps"] == 4
        assert report["refusals"] == []
        assert report["emitted_nodes"]["unrolled"] > 50

    def test_refusals_are_listed_with_the_exit_code_of_models(self, call: Caller, tmp_path: Path) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }"
        onnx.save(parse(text), tmp_path / "r.onnx")
        done = call("inspect", tmp_path / "r.onnx")
        assert done.code == 3
        assert "refused Bernoulli 'b': its output is random" in " ".join(done.out.split())
        assert json.loads(call("inspect", tmp_path / "r.onnx", "--json").out)["refusals"][0]["node"] == "b"


class TestLabels:
    """Of evaluation data that have none, or others."""

    def test_beside_the_data(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        with np.load(data) as file:
            np.save(tmp_path / "x.npy", file["x"]), np.save(tmp_path / "y.npy", file["labels"])
        out = tmp_path / "snn.onnx"
        base = ("convert", ann, "-T", 2, "--calib-data", data, "-o", out, "--json")
        expected = json.loads(call(*base, "--eval-data", data).out)["evaluation"]["accuracy"]
        beside = ("--eval-data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
        assert json.loads(call(*base, *beside).out)["evaluation"]["accuracy"] == expected
        assert json.loads(call("evaluate", out, *beside, "--json").out)["accuracy"] == expected
        fails(call(*base, "--labels", tmp_path / "y.npy"), 2, "those of --eval-data, which is not given")
        fails(call(*base, *beside[:3], tmp_path / "y.csv"), 4, "y.csv: a table lists image files")


@pytest.fixture(scope="module")
def snn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snn") / "snn.onnx"
    pipeline.convert(RELU, CALIBRATION, steps=3, calib_samples=64).save(path)
    return path


class TestEvaluate:
    def test_prints_the_curve(self, call: Caller, snn: Path) -> None:
        done = call("evaluate", snn, "--eval-data", TEST, "--ann", RELU)
        assert (done.code, done.err) == (0, "")
        assert "360 samples of digits_test.npz, ANN 100.00 %" in done.out
        assert done.out.startswith("device c")

    def test_json(self, call: Caller, snn: Path) -> None:
        done = call("evaluate", snn, "--eval-data", TEST, "--samples", 50, "--json", "--device", "cpu")
        report = json.loads(done.out)
        assert report["samples"] == 50
        assert len(report["accuracy"]) == 3
        assert report["ann_accuracy"] is None
        assert report["device"] == "cpu"

    def test_label_offset(self, call: Caller, snn: Path, tmp_path: Path) -> None:
        images, labels = digits("test", 40)
        np.savez(tmp_path / "shifted.npz", image=images, label=labels + 1)
        shifted = call("evaluate", snn, "--eval-data", tmp_path / "shifted.npz", "--label-offset", -1, "--json")
        plain = call("evaluate", snn, "--eval-data", TEST, "--samples", 40, "--json")
        assert json.loads(shifted.out)["accuracy"] == json.loads(plain.out)["accuracy"]

    def test_an_ann_is_refused(self, call: Caller) -> None:
        fails(call("evaluate", RELU, "--eval-data", TEST), 3, "is no spiking network made by ftbc-onnx")

    def test_another_ann_is_refused(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, "--ann", QCFS), 3, "was not made from", "digests differ")

    def test_labels_that_do_not_fit(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, "--label-offset", 5), 4, "is no class of output 'logits'")

    def test_without_data(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn), 2, "--eval-data")

    @pytest.mark.parametrize("option", ["--samples", "--batch-size"])
    def test_numbers_from_one(self, call: Caller, snn: Path, option: str) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, option, 0), 2, "is 0: it must be a whole number, at least 1")


class TestReport:
    """Pages themselves are the matter of `test_page`."""

    @pytest.fixture
    def saved(self, call: Caller, ann: Path, data: Path) -> Path:
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data, "--json")
        data.with_name("r.json").write_text(done.out)
        return data.with_name("r.json")

    def test_convert_writes_the_page(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
        page = tmp_path / "a page.html"
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data, "--report", page)
        assert (done.code, done.err) == (0, "")
        assert f"wrote {page} (0." in done.out
        command = f"ftbc-onnx convert {ann} -T 2 --calib-data {data} --eval-data {data} --report '{page}'"
        assert html.escape(command).replace("&#x27;", "&#39;") in page.read_text(encoding="utf-8")

    def test_later_it_is_the_same_page(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib"), pytest.importorskip("jinja2")
        done = call("convert", ann, "-T", 2, "--calib-data", data, "--json", "--report", tmp_path / "a.html")
        saved = tmp_path / "r.json"
        saved.write_text(done.out)
        done = call("report", saved, "-o", tmp_path / "b.html", "--png", tmp_path / "figures")
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
        written = [tmp_path / "b.html", *sorted((tmp_path / "figures").glob("*.png"))]
        assert len(written) == 6
        assert sorted(done.out.splitlines()) == sorted(f"wrote {path}" for path in written)

    def test_without_a_page_it_is_what_convert_prints(self, call: Caller, ann: Path, data: Path, saved: Path) -> None:
        first = call("convert", ann, "-T", 2, "--calib-data", data, "--eval-data", data).out.splitlines()[:-1]
        second = call("report", saved).out.splitlines()
        assert [line for line in second if "batch(es)" not in line] == [x for x in first if "batch(es)" not in x]
        assert json.loads(saved.read_text())["summary"][1:]
        for sentence in json.loads(saved.read_text())["summary"][1:]:
            assert sentence in second

    def test_from_stdin(self, call: Caller, saved: Path) -> None:
        command = [sys.executable, "-m", "ftbc_onnx", "report", "-"]
        done = subprocess.run(command, input=saved.read_text(), capture_output=True, text=True, timeout=120, check=True)
        assert (done.stdout, done.stderr) == (call("report", saved).out, "")

    @pytest.mark.parametrize("content", [b"\xff\x00", b"nothing", b"[]", b"{}", b'{"sites": 3}'])
    def test_what_is_no_report(self, call: Caller, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "r.json").write_bytes(content)
        fails(call("report", tmp_path / "r.json"), 2, "r.json' is no ", "ftbc-onnx convert --json")

    def test_of_another_version(self, call: Caller, saved: Path) -> None:
        report = json.loads(saved.read_text())
        del report["evaluation"]["sites"]["r2"]["rate_range"]
        saved.write_text(json.dumps(report))
        fails(
            call("report", saved), 2, "no report of a conversion by this version (a measured site without 'rate_range')"
        )

    def test_a_network_is_none(self, call: Caller, snn: Path) -> None:
        fails(call("report", snn), 2, "is no JSON")

    def test_without_the_libraries(
        self, call: Caller, ann: Path, data: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Known before the conversion starts."""
        monkeypatch.setattr(page, "find_spec", lambda _: None)
        target = ann.with_name("o.onnx")
        done = call("convert", ann, "--calib-data", data, "-o", target, "--report", ann.with_name("r.html"))
        fails(done, 2, "takes matplotlib and jinja2: pip install 'ftbc-onnx[report]'")
        assert not target.exists()
        fails(call("report", saved, "-o", ann.with_name("r.html")), 2, "pip install 'ftbc-onnx[report]'")
        assert call("report", saved).code == 0

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("net.onnx", "exists and is no .html file"),
            (".", "is a folder"),
            ("none/r.html", "does not exist: create it first"),
            ("new.onnx", "is the name of the converted model"),
        ],
    )
    def test_targets_that_cannot_be_meant(self, call: Caller, ann: Path, data: Path, name: str, said: str) -> None:
        before = ann.read_bytes()
        target = ann.with_name("new.onnx")
        done = call("convert", ann, "--calib-data", data, "-o", target, "--report", ann.parent / name)
        fails(done, 2, "--report '", said)
        assert ann.read_bytes() == before
        assert not target.exists()


class TestImages:
    """A folder of pictures, with preprocessing that the file remembers."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """12x10 pictures in two classes: their middle 8x8 are digits 0 and 1, bright on dark, in 0..255."""
        images, labels = digits("test")
        for label in (0, 1):
            (tmp_path / "pictures" / str(label)).mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:10]):
                pixels = np.zeros((12, 10), np.uint8)
                pixels[2:10, 1:9] = np.rint(image[0] * 255)
                Image.fromarray(pixels).save(tmp_path / "pictures" / str(label) / f"{number}.png")
        return tmp_path / "pictures"

    def test_end_to_end(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "snn.onnx"
        done = call(
            *("convert", RELU, "-T", 4, "--calib-data", folder, "--eval-data", folder, "-o", out, "--json"),
            *("--resize", "12x10", "--crop", 8, "--mean", 0, "--std", 1),
        )
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["data"] == "pictures"
        assert report["preprocessing"]["resize"] == [12, 10]
        assert report["preprocessing"]["crop"] == 8
        assert report["evaluation"]["ann_accuracy"] == 100
        assert report["evaluation"]["accuracy"][-1] >= 90
        again = call("evaluate", out, "--eval-data", folder, "--ann", RELU, "--json")
        assert json.loads(again.out)["accuracy"] == report["evaluation"]["accuracy"]
        assert json.loads(again.out)["ann_accuracy"] == 100
        assert json.loads(read_record(onnx.load(out))["preprocessing"])["mean"] == [0.0]

    def test_preprocessing_from_a_file(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        """Its filter too is in the metadata, and used again by `evaluate`."""
        size = {"height": 10, "width": 10}
        config = {"do_resize": True, "size": size, "resample": 3, "do_center_crop": True, "crop_size": 8}
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps({**config, "do_normalize": True, "image_mean": [0.5], "image_std": [0.25]}))
        out = tmp_path / "snn.onnx"
        base = ("convert", RELU, "-T", 2, "--calib-data", folder, "--eval-data", folder, "-o", out, "--json")
        by_file = json.loads(call(*base, "--preprocessor", tmp_path, "--mean", 0, "--std", 1).out)
        remembered = json.loads(read_record(onnx.load(out))["preprocessing"])
        assert remembered == by_file["preprocessing"]
        assert (remembered["resample"], remembered["mean"], remembered["std"]) == ("bicubic", [0.0], [1.0])
        options = ("--resize", "10x10", "--resample", "bicubic", "--crop", "8x8", "--scale", "1/255")
        by_options = json.loads(call(*base, *options, "--mean", 0, "--std", 1).out)
        assert by_options["data_digest"] == by_file["data_digest"]
        assert by_options["evaluation"]["output_gap"] == by_file["evaluation"]["output_gap"]
        other = json.loads(call(*base, *options[:2], *options[4:], "--mean", 0, "--std", 1).out)
        assert other["evaluation"]["output_gap"] != by_file["evaluation"]["output_gap"]
        call(*base, "--preprocessor", file, "--mean", 0, "--std", 1)
        again = json.loads(call("evaluate", out, "--eval-data", folder, "--ann", RELU, "--json").out)
        assert again["output_gap"] == by_file["evaluation"]["output_gap"]
        fails(call(*base[:-1], "--preprocessor", tmp_path / "none.json"), 2, "none.json' cannot be read")

    def test_arrays_have_no_sizes(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text('{"size": 8, "image_mean": [0], "image_std": [1]}')
        done = call("convert", ann, "--calib-data", data, "--preprocessor", tmp_path)
        fails(done, 2, "work on image files", "give its --scale, --mean and --std instead")

    def test_mean_and_std_change_what_the_network_sees(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        def ann_accuracy(*options: object) -> float:
            done = call(
                *("convert", RELU, "-T", 1, "--calib-data", folder, "--eval-data", folder, "--crop", 8, "--json"),
                *("-o", tmp_path / "o.onnx", "--rule", "none", *options),
            )
            assert done.code == 0, done.err
            return json.loads(done.out)["evaluation"]["ann_accuracy"]

        assert ann_accuracy() == 100
        assert ann_accuracy("--mean", 1, "--std", -1) < 60  # dark on bright

    def test_wrong_size_names_the_options(self, call: Caller, folder: Path) -> None:
        fails(call("convert", RELU, "--calib-data", folder), 4, "resize", "crop")


class TestFailures:
    def test_models(self, call: Caller, tmp_path: Path) -> None:
        bad = tmp_path / "bad.onnx"
        for content, part in (
            (b"", "is empty"),
            (RELU.read_bytes()[:50_000], "no ONNX file"),
            (b"hello", "no ONNX file"),
        ):
            bad.write_bytes(content)
            for command in (["convert", bad, "--calib-data", CALIBRATION], ["inspect", bad]):
                fails(call(*command), 3, bad, part)
        fails(call("convert", tmp_path / "none.onnx", "--calib-data", CALIBRATION), 3, "does not exist")
        fails(call("convert", tmp_path, "--calib-data", CALIBRATION), 3, "is a folder")
        fails(call("convert", ".", "--calib-data", CALIBRATION), 3, "is a folder")
        fails(call("convert", tmp_path / "none.onnx", "-o", bad, "--calib-data", CALIBRATION), 3, "does not exist")

    def test_refused_nodes(self, call: Caller, tmp_path: Path, data: Path) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }"
        onnx.save(parse(text), tmp_path / "r.onnx")
        fails(call("convert", tmp_path / "r.onnx", "--calib-data", data), 3, "1 node(s) refused: Bernoulli 'b'")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "r.onnx"]

    def test_weights_that_are_not_numbers(self, call: Caller, tmp_path: Path, data: Path) -> None:
        """Infinite ones are no error (masks and open ceilings have them), nor is a NaN that is only chosen from."""
        text = (
            "g (float[N,4] x) => (float[N,4] y) "
            "{ m = Mul(x, w)  r = Relu(m)  s = Min(r, top)  p = Greater(s, x)  q = Where(p, s, other)  i = IsNaN(q) "
            "y = Where(i, x, q) }"
        )
        for weight, name in ((np.nan, "nan.onnx"), (2.0, "right.onnx")):
            model = parse(text)
            values = {"w": np.float32([1, weight, 3, weight]), "top": np.float32(np.inf), "other": np.float32(np.nan)}
            model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in values.items())
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.nan]), "unused"))
            model.graph.node[0].name = "scale"
            onnx.save(model, tmp_path / name)
        reason = "Mul 'scale': 2 of the numbers in 'w' are NaN"
        fails(call("convert", tmp_path / "nan.onnx", "--calib-data", data), 3, "1 node(s) refused", reason)
        assert reason in " ".join(call("inspect", tmp_path / "nan.onnx").out.split())
        assert json.loads(call("inspect", tmp_path / "right.onnx", "--json").out)["refusals"] == []

    @pytest.mark.parametrize(
        ("array", "part"),
        [
            (np.zeros((8, 3, 4, 4), np.float32), "[N, 2, 4, 4]"),
            (np.zeros((8, 32), np.float32), "[N, 2, 4, 4]"),
            (np.zeros((8, 2, 4, 4), np.complex64), "complex64"),
            (np.full((8, 2, 4, 4), "a"), "<U1"),
            (np.full((8, 2, 4, 4), np.nan, np.float32), "NaN"),
            (np.zeros((0, 2, 4, 4), np.float32), "empty"),
        ],
        ids=["shape", "rank", "complex", "text", "nan", "none"],
    )
    def test_data(self, call: Caller, ann: Path, array: np.ndarray, part: str) -> None:
        path = ann.with_name("wrong.npz")
        np.savez(path, x=array)
        fails(call("convert", ann, "--calib-data", path), 4, "wrong.npz", part)
        assert not list(ann.parent.glob("*.snn_*"))

    def test_data_files(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        fails(call("convert", ann), 4, "calibration data are needed", f"ftbc-onnx convert {ann} --calib-data")
        fails(call("convert", ann, "--calib-data", tmp_path / "none.npz"), 4, "none.npz", "no such file")
        np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        fails(call("convert", ann, "--calib-data", tmp_path / "pickled.npy"), 4, "pickled.npy", "cannot be read")
        (tmp_path / "broken.npz").write_bytes(data.read_bytes()[:200])
        fails(call("convert", ann, "--calib-data", tmp_path / "broken.npz"), 4, "broken.npz", "cannot be read")
        fails(
            call("convert", ann, "--calib-data", data, "--batch-size", 17), 4, "16 samples", "--batch-size 16 or less"
        )
        fails(call("convert", ann, "--calib-data", data, "--eval-data", tmp_path), 4, "evaluation data")

    def test_options(self, call: Caller, ann: Path, data: Path) -> None:
        base = ("convert", ann, "--calib-data", data)
        fails(call(*base, "-T", 0), 2, "T (steps) is 0: it must be a whole number, at least 1")
        fails(call(*base, "-T", "four"), 2, "'four' is not a valid integer")
        fails(call(*base, "--rule", "potential"), 2, "'potential'", *RULES)
        fails(call(*base, "--threshold", "mean"), 2, "'mean'", *THRESHOLDS)
        fails(call(*base, "--neuron", "lif"), 2, "'lif' is not one of 'auto', 'if'")
        fails(call(*base, "--alpha", -1), 2, "alpha is -1.0")
        fails(call(*base, "--percentile", 0), 2, "percentile is 0.0")
        fails(call(*base, "--percentile", 99, "--threshold", "max"), 2, "--percentile goes with --threshold percentile")
        fails(call(*base, "--batch-size", 0), 2, "batch_size is 0")
        fails(call(*base, "--calib-samples", 0), 2, "calib_samples is 0")
        fails(call(*base, "--mean", "a,b"), 2, "--mean 'a' is no number")
        fails(call(*base, "--scale", "1/0"), 2, "--scale '1/0' is no number")
        fails(call(*base, "--std", "1,0"), 2, "std", "0")
        fails(call(*base, "--mean", "1,2,3"), 2, "3 channels")
        fails(call(*base, "--resize", "big"), 2, "--resize 'big' is no size")
        fails(call(*base, "--crop", "1x2x3"), 2, "--crop '1x2x3' is no size")
        fails(call(*base, "--resize", 8), 2, "resize, crop and color work on image files")
        fails(call(*base, "--layout", "CHWN"), 2, "'CHWN'")
        fails(call(*base, "--stepz", 4), 2, "--stepz", "--steps")
        fails(call("convrt", ann), 2, "No such command 'convrt'")
        fails(call("convert"), 2, "Missing argument 'MODEL'")
        assert not list(ann.parent.glob("*.snn_*"))

    def test_output(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        base = ("convert", ann, "--calib-data", data, "-T", 2, "-o")
        before = ann.read_bytes()
        fails(call(*base, ann), 2, "is the input itself: choose another name")
        fails(call(*base, tmp_path / "." / "net.onnx"), 2, "is the input itself")
        fails(call(*base, tmp_path), 2, "is a folder: give the name of a file")
        fails(call(*base, tmp_path / "none" / "o.onnx"), 2, "the folder of --output", "does not exist: create it first")
        assert ann.read_bytes() == before

    def test_output_over_what_is_no_model(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        """The data, or the weights of the ANN, must not be lost by a slip of the keyboard."""
        weights = tmp_path / "net.onnx.data"
        onnx.save_model(onnx.load(ann), ann, save_as_external_data=True, location=weights.name, size_threshold=0)
        for target in (data, weights):
            before = target.read_bytes()
            done = call("convert", ann, "--calib-data", data, "-T", 2, "-o", target)
            fails(done, 2, f"--output '{target}' exists and is no .onnx file: choose another name")
            assert target.read_bytes() == before

    @needs_no_cuda
    def test_cuda_where_there_is_none(self, call: Caller, ann: Path, data: Path) -> None:
        fails(call("convert", ann, "--calib-data", data, "--device", "cuda"), 6, "--device cuda: ", "use --device cpu")

    def test_unknown_device(self, call: Caller, ann: Path, data: Path) -> None:
        fails(call("convert", ann, "--calib-data", data, "--device", "tpu"), 6, "unknown device 'tpu'")

    def test_biases_that_are_not_finite(self, call: Caller, ann: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=numbers(64, 2, 4, 4) * 100)
        options = ("--rule", "paper", "--alpha", 3e38, "--batch-size", 8, "-T", 2)
        fails(call("convert", ann, "--calib-data", tmp_path / "d.npz", *options), 5, "not finite", "--alpha")

    def test_a_result_that_is_not_its_plan(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emit = pipeline.emit
        spoilt = lambda network, plan, form, **_: emit(network, plan.without_biases(), form)  # noqa: E731
        monkeypatch.setattr(pipeline, "emit", spoilt)
        fails(call("convert", ann, "--calib-data", data, "-T", 2), 7, "differs from its plan")
        assert not list(ann.parent.glob("*.snn_*"))


class TestInterruption:
    @pytest.mark.parametrize("stage", ["collect_statistics", "calibrate", "verify", "run_ann", "save"])
    def test_leaves_nothing_behind(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        room = planning if stage in ("collect_statistics", "calibrate") else pipeline
        monkeypatch.setattr(room, stage, interrupted)
        before = sorted(ann.parent.iterdir())
        done = call("convert", ann, "--calib-data", data, "-T", 2)
        assert done.code == 130
        assert done.out == ""
        assert done.err.strip() == f"ftbc-onnx: error: {cli.INTERRUPTED}"
        assert sorted(ann.parent.iterdir()) == before

    def test_a_bug_keeps_its_traceback(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(pipeline, "verify", broken)
        with pytest.raises(ZeroDivisionError):
            call("convert", ann, "--calib-data", data, "-T", 2)


HERE = "models/digits_relu.onnx"
DOCUMENTED: dict[str, tuple[object, ...]] = {
    "T is 0": (HERE, "-T", 0),
    "`-o` is the input": (HERE, "-o", HERE),
    "`-o` is the data": (HERE, "--calib-data", "calib.npy", "-o", "calib.npy"),
    "no such file": ("nothere.onnx",),
    "a random operator": ("noisy.onnx",),
    "weights left behind": ("net.onnx",),
    "an SNN as input of `convert`": ("digits_snn.onnx",),
    "ReLU without data": (HERE,),
    "a pickled array": (HERE, "--calib-data", "objects.npy"),
    "a batch larger than the data": (HERE, "--calib-data", CALIBRATION, "--batch-size", 500),
}
"""Arguments of `convert` for each example of docs/errors.md."""


def test_every_example_of_the_page_of_errors(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path(HERE).write_bytes(RELU.read_bytes())
    np.save("calib.npy", numbers(4, 1, 8, 8))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    onnx.save(parse("g (float[N,4] x) => (float[N,4] y) { r = Relu(x) b = Bernoulli(r) y = Add(r, b) }"), "noisy.onnx")
    onnx.save_model(residual(), "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    Path("net.onnx.data").unlink()
    pipeline.convert(QCFS, steps=1).save("digits_snn.onnx")
    page = Path(__file__).parents[1] / "docs" / "errors.md"
    _, _, table = page.read_text(encoding="utf-8").partition("## Examples")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| ")][2:]
    examples = {row[0].removeprefix("| "): (row[1].strip("`"), int(row[2].rstrip(" |"))) for row in rows}
    assert examples.pop("no GPU")[1] == 6  # the line depends on the machine
    assert examples.keys() == DOCUMENTED.keys()
    for situation, (line, code) in examples.items():
        before = sorted(tmp_path.rglob("*"))
        done = call("convert", *DOCUMENTED[situation])
        assert fails(done, code) == f"ftbc-onnx: error: {line}"
        assert sorted(tmp_path.rglob("*")) == before
