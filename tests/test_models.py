"""The shipped digits networks and their data, and the scripts that make them."""

import importlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import numbers, parse
from helpers import run as emitted
from networks import network_of

from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.inspection import inspect_model
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan

MODELS = Path(__file__).parents[1] / "models"
NAMES = ["digits_relu.onnx", "digits_qcfs4.onnx"]


def load(name):
    with np.load(MODELS / f"digits_{name}.npz") as data:
        return data["image"], data["label"]


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def table():
    """Network to (kB, correct images, images, percent), from the table of models/README.md."""
    row = r"^\| `(\S+\.onnx)` \|.*\| (\d+) kB \| (\d+) of (\d+) = ([\d.]+) % \|$"
    rows = re.findall(row, (MODELS / "README.md").read_text(), re.MULTILINE)
    return {name: (int(size), int(correct), int(count), float(percent)) for name, size, correct, count, percent in rows}


def images(array):
    return {image.tobytes() for image in array}


@pytest.mark.parametrize("name", NAMES)
class TestShippedNetwork:
    def test_is_small_valid_and_self_contained(self, name):
        content = (MODELS / name).read_bytes()
        model = onnx.load_from_string(content)  # has no folder to find external data in
        onnx.checker.check_model(model, full_check=True)
        assert len(content) < 200_000
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert b".py" not in content  # no stack traces

    @pytest.mark.parametrize("batch", [1, 5])
    def test_batch_axis_is_free(self, name, batch):
        image, _ = load("test")
        scores = run(MODELS / name, image[:batch])
        assert scores.shape == (batch, 10)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, run(MODELS / name, image[:8])[:batch], atol=1e-4)

    def test_accuracy_and_size_are_those_of_the_readme(self, name):
        image, label = load("test")
        size, correct, count, percent = table()[name]
        assert np.sum(run(MODELS / name, image).argmax(1) == label) == correct
        assert len(label) == count
        assert round(100 * correct / count, 2) == percent
        assert round((MODELS / name).stat().st_size / 1000) == size


def test_readme_lists_each_network():
    assert sorted(table()) == sorted(NAMES) == sorted(path.name for path in MODELS.glob("digits*.onnx"))


@pytest.mark.parametrize(("name", "count"), [("calibration", 256), ("test", 360)])
def test_data(name, count):
    image, label = load(name)
    assert image.shape == (count, 1, 8, 8)
    assert image.dtype == np.float32
    assert label.shape == (count,)
    assert label.dtype == np.int64
    assert image.min() == 0
    assert image.max() == 1
    assert np.array_equal(16 * image, np.round(16 * image))
    assert np.bincount(label, minlength=10).min() >= count // 10 - 2  # stratified
    assert len(images(image)) == count
    assert (MODELS / f"digits_{name}.npz").stat().st_size < 30_000


def test_calibration_and_test_images_do_not_overlap():
    assert not images(load("calibration")[0]) & images(load("test")[0])


def test_qcfs_graph_holds_the_quantise_chain():
    nodes = onnx.load(MODELS / "digits_qcfs4.onnx").graph.node
    chain = [node for node in nodes if node.op_type != "Constant"]
    kinds = " ".join(node.op_type for node in chain)
    assert kinds.count("Mul Div Add Floor Clip Mul") == 4
    assert kinds.count("BatchNormalization") == 4
    for node, follower in itertools.pairwise(chain):
        if node.op_type in ("Mul", "Div", "Add", "Floor", "Clip") and follower.op_type != "BatchNormalization":
            assert node.output[0] in follower.input


CIFAR = {"qcfs8": 8, "qcfs8_seed1": 8, "qcfs4": 4, "clipped": None}


@pytest.mark.parametrize("kind", CIFAR)
class TestCifarNetwork:
    def test_is_small_valid_and_self_contained(self, kind):
        path = MODELS / f"cifar10_resnet20_{kind}.onnx"
        content = path.read_bytes()
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert len(content) < 1_200_000
        assert f"| `{path.name}` |" in (MODELS / "README.md").read_text()
        assert f"| {len(content) / 1000:.0f} kB |" in (MODELS / "README.md").read_text()
        assert b".py" not in content  # no stack traces

    def test_states_what_was_learned(self, kind):
        """Thresholds and levels of QCFS, ceilings of the other; 19 sites, batch free."""
        path = MODELS / f"cifar10_resnet20_{kind}.onnx"
        sites = inspect_model(path)["sites"]
        assert len(sites) == 19
        assert {site["levels"] for site in sites} == {CIFAR[kind]}
        assert all(site["ceiling" if CIFAR[kind] is None else "threshold"] for site in sites)
        assert run(path, numbers(3, 3, 32, 32)).shape == (3, 10)


class TestActivation:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture
    def qcfs(self, torch, monkeypatch):  # noqa: ARG002
        monkeypatch.syspath_prepend(MODELS)
        return importlib.import_module("activations").QCFS

    @pytest.mark.parametrize("levels", [1, 2, 4, 8])
    @pytest.mark.parametrize("threshold", [0.5, 1.0, 3.7])
    @pytest.mark.parametrize("gradient", [False, True])
    def test_is_the_formula(self, torch, qcfs, levels, threshold, gradient):
        x = np.random.default_rng(0).normal(0, 2 * threshold, (7, 3, 5)).astype(np.float32)
        theta, half = np.float32(threshold), np.float32(0.5)
        expected = theta / np.float32(levels) * np.clip(np.floor(x * levels / theta + half), 0, levels)
        with torch.set_grad_enabled(gradient):
            got = qcfs(levels, threshold)(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6)

    @pytest.mark.parametrize("gradient", [False, True])
    def test_half_points_round_up(self, torch, qcfs, gradient):
        x = torch.tensor([-0.5, -0.25, 0, 0.25, 0.75, 1.25, 1.75, 2.25, 9])  # steps of threshold/L = 0.5, halved
        just_below = torch.nextafter(x, torch.tensor(-torch.inf))
        with torch.set_grad_enabled(gradient):
            act = qcfs(4, 2.0)
            assert act(x).tolist() == [0, 0, 0, 0.5, 1, 1.5, 2, 2, 2]
            assert act(just_below)[4:].tolist() == [0.5, 1, 1.5, 2, 2]

    def test_gradient_is_straight_through(self, torch, qcfs):
        act = qcfs(4, 2.0)
        x = torch.tensor([-1.0, 0.6, 1.2, 5.0], requires_grad=True)
        act(x).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 0]
        # d/dtheta of theta/L * z is z/L - x/theta inside the range (z: the level), 0 below it and 1 above.
        assert act.threshold.grad.item() == pytest.approx((1 / 4 - 0.3) + (2 / 4 - 0.6) + 1)

    @pytest.mark.parametrize(
        ("x", "gradient", "of_threshold"),
        [(-0.2, 0, 0), (-0.1, 0, 0), (0.1, 1, -0.05), (1.9, 1, 0.05), (2.1, 0, 1), (2.2, 0, 1), (2.3, 0, 1)],
    )
    def test_gradient_ends_at_zero_and_at_the_threshold(self, torch, qcfs, x, gradient, of_threshold):
        """As published, x / theta is limited to [0, 1] before it is rounded: not half a level further out."""
        act = qcfs(4, 2.0)
        x = torch.tensor(x, requires_grad=True)
        act(x).backward()
        assert x.grad.item() == gradient
        assert act.threshold.grad.item() == pytest.approx(of_threshold, abs=1e-6)

    def test_threshold_stays_positive(self, torch, qcfs):
        act = qcfs(4, 2.0)
        with torch.no_grad():
            act.threshold.fill_(-1)
        act.keep_positive()
        assert act.threshold.item() == pytest.approx(act.MIN_THRESHOLD)
        assert act.threshold.requires_grad

    @pytest.mark.parametrize(("levels", "threshold"), [(0, 1.0), (4, 0.0), (4, -1.0)])
    def test_refuses_what_is_not_positive(self, qcfs, levels, threshold):
        with pytest.raises(ValueError, match="levels >= 1 and threshold > 0"):
            qcfs(levels, threshold)


class TestScript:
    @pytest.fixture
    def digits(self, monkeypatch):
        torch = pytest.importorskip("torch")
        pytest.importorskip("sklearn")
        pytest.importorskip("onnxscript")
        threads = torch.get_num_threads()
        monkeypatch.syspath_prepend(MODELS)
        yield importlib.import_module("digits")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
    def test_exports_agree_with_torch(self, digits, name, exporter, tmp_path):
        few = digits.load().take(np.arange(128))
        network = digits.NETWORKS[name]
        net = digits.train(few, network.activation, epochs=1, seed=0)
        digits.export(net, digits.torch.zeros(2, 1, 8, 8), tmp_path / name, exporter)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        difference = np.abs(run(tmp_path / name, few.image) - digits.logits(net, few.image)).max(1)
        # Rounding may put a value that lies on the edge between two levels of QCFS into the other level.
        assert np.mean(difference < 1e-4) > (0.9 if "qcfs" in name else 0.999)

    def test_training_is_deterministic(self, digits):
        few = digits.load().take(np.arange(128))
        first, second = (digits.train(few, digits.NETWORKS[NAMES[1]].activation, epochs=1, seed=3) for _ in range(2))
        np.testing.assert_array_equal(digits.logits(first, few.image), digits.logits(second, few.image))

    def test_shift_moves_by_a_pixel_at_most(self, digits):
        torch = pytest.importorskip("torch")
        image = torch.zeros(200, 1, 8, 8)
        image[:, :, 3, 5] = 1
        moved = digits.shifted(image, 1, torch.Generator().manual_seed(0))
        assert moved.shape == image.shape
        places = {(row, column) for _, _, row, column in moved.nonzero().tolist()}
        assert places == {(row, column) for row in (2, 3, 4) for column in (4, 5, 6)}

    def test_command_line_writes_the_shipped_data(self, digits, tmp_path):
        from click.testing import CliRunner

        result = CliRunner().invoke(digits.main, ["--out", str(tmp_path), "--epochs", "1"], catch_exceptions=False)
        assert result.exit_code == 0
        assert all(name in result.output for name in NAMES)
        assert {path.name for path in tmp_path.iterdir()} == {*NAMES, "digits_calibration.npz", "digits_test.npz"}
        for name in ("calibration", "test"):
            image, label = load(name)
            with np.load(tmp_path / f"digits_{name}.npz") as written:
                np.testing.assert_array_equal(written["image"], image)
                np.testing.assert_array_equal(written["label"], label)


class TestSpiking:
    """The network in PyTorch that the benchmark compares with."""

    TEXT = """g (float[N,3,8,8] x) => (float[N,5] y) {
        a = Conv <pads = [1,1,1,1]> (x, w1, b1)  r = Relu(a)
        c = Conv <pads = [0,0,1,1], strides = [2,2]> (r, w2)
        p = AveragePool <kernel_shape = [2,2], strides = [2,2]> (r)
        s = Add(c, p)  t = Relu(s)  HEAD  y = Gemm <transB = 1> (f, w3, b3) }"""

    @pytest.mark.parametrize(
        "head",
        [
            "q = AveragePool <kernel_shape = [4,4]> (t) f = Reshape(q, shape)",
            "q = GlobalAveragePool(t) f = Flatten(q)",
            "a2 = AveragePool <kernel_shape = [2,2]> (t) q = GlobalAveragePool(a2) f = Flatten(q)",
            "a2 = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2], ceil_mode = 0> (t) "
            "q = GlobalAveragePool(a2) f = Flatten(q)",
        ],
    )
    def test_computes_what_the_emitted_file_computes(self, monkeypatch, head):
        torch = pytest.importorskip("torch")
        monkeypatch.syspath_prepend(str(MODELS))
        spiking = importlib.import_module("spiking")
        weights = {
            "w1": numbers(4, 3, 3, 3),
            "b1": numbers(4),
            "w2": numbers(4, 4, 2, 2),
            "shape": np.array([-1, 4]),
            "w3": numbers(5, 4),
            "b3": numbers(5),
        }
        network = network_of(parse(self.TEXT.replace("HEAD", head), **weights))
        thresholds = {site.name: np.linspace(0.5, 2, site.channels) for site in network.sites}
        biases = {site.name: numbers(6, site.channels) * 0.1 for site in network.sites}
        plan = SpikingPlan("", network.sites, 6, NeuronSpec("if"), thresholds, biases)
        x = numbers(3, 3, 8, 8)
        with torch.inference_mode():
            ours = spiking.TimeBatched(network, plan)(torch.from_numpy(x)).numpy()
        expected = emitted(emit_unrolled(network, plan).model, {"x": x}, optimise=False)["y"]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

    def test_names_what_it_does_not_know(self, monkeypatch):
        pytest.importorskip("torch")
        monkeypatch.syspath_prepend(str(MODELS))
        spiking = importlib.import_module("spiking")
        network = network_of(parse("g (float[N,3] x) => (float[N,3] y) { r = Relu(x)  y = Softmax(r) }"))
        plan = SpikingPlan("", network.sites, 2, NeuronSpec("if"), {s.name: np.ones(3) for s in network.sites})
        with pytest.raises(NotImplementedError, match="Softmax"):
            spiking.TimeBatched(network, plan)
        with pytest.raises(NotImplementedError, match="neuron is signed: this class"):
            spiking.TimeBatched(network, replace(plan, neuron=NeuronSpec("signed")))
