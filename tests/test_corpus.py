"""Every text network of the corpus: the ANN is kept, the SNN is valid and standard, and it comes to the ANN as T grows.

The negative tests say what that proof is worth: with one wrong line in the converter, it fails.
"""

from __future__ import annotations

import onnx
import pytest
from corpus import proof
from corpus.entry import Entry
from corpus.graphs import GRAPHS
from corpus.operators import ABSENT, JUMPS, OPERATORS
from corpus.operators import LINEAR as LINEAR_ENTRIES
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert
from helpers import newest_opset

from ftbc_onnx.graph import classes
from ftbc_onnx.graph.classes import LINEAR, NodeClass
from ftbc_onnx.graph.emit.step import StepEmitter

NEWEST = 24
"""Operators of later opsets need not be here."""

FAILS = r"error|slope"


def prove(entry: Entry) -> None:
    if entry.opset > newest_opset():
        pytest.skip(f"opset {entry.opset} is newer than what the installed onnxruntime takes ({newest_opset()})")
    model = entry.make()
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))


@pytest.mark.parametrize("entry", GRAPHS, ids=str)
def test_graph(entry: Entry) -> None:
    prove(entry)


@pytest.mark.parametrize("entry", OPERATORS, ids=str)
def test_operator(entry: Entry) -> None:
    prove(entry)


def test_every_standard_operator_is_in_the_corpus_or_said_to_be_absent() -> None:
    models = [entry.make() for entry in [*GRAPHS, *OPERATORS]]
    used = {node.op_type for model in models for node in model.graph.node}
    known = {
        schema.name: schema.since_version
        for schema in sorted(onnx.defs.get_all_schemas_with_history(), key=lambda s: -s.since_version)
        if schema.domain == "" and schema.support_level == onnx.defs.OpSchema.SupportType.COMMON
    }
    missing = {op for op, since in known.items() if since <= NEWEST} - used - set(ABSENT)
    assert not missing
    assert len({entry.name for entry in OPERATORS}) == len(OPERATORS)


def test_every_linear_operator_is_proven_as_one() -> None:
    gone = {"Dropout", "Identity", "Upsample"}  # not there any more after normalisation
    seen = set()
    for entry in LINEAR_ENTRIES:
        network = convert(entry.make())
        seen |= {n.op_type for n in network.view.nodes if network.classes[n.name] is NodeClass.LINEAR}
    assert set(LINEAR) - seen - gone == {"BatchNormalization"}  # folded; unfolded in a graph whose numbers are computed


def test_what_is_not_inferable_is_so_before_it_is_converted() -> None:
    (entry,) = (entry for entry in [*GRAPHS, *OPERATORS] if not entry.inferable)
    assert entry.name == "MeanVarianceNormalization"  # its function body is written for another opset of Constant
    try:
        onnx.checker.check_model(entry.make(), full_check=True)
    except onnx.shape_inference.InferenceError:
        return
    pytest.skip("this onnx infers its shapes: the mark can go once the oldest supported one does")


def test_jumps_are_rate_exact() -> None:
    for entry in JUMPS:
        network = convert(entry.make())
        assert NodeClass.RATE_EXACT in network.classes.values(), entry.name


# the proof can fail


def wrong(monkeypatch: pytest.MonkeyPatch, op_type: str) -> None:
    """Take an operator for linear in everything it reads."""
    monkeypatch.setitem(classes.LINEAR, op_type, classes.Linear())


def entry_of(name: str) -> Entry:
    return next(entry for entry in [*OPERATORS, *GRAPHS] if entry.name == name)


NOT_LINEAR = [
    ("MaxPool", "MaxPool"), ("Mul", "Product of two"), ("Div", "Quotient of two"), ("MatMul", "Matrix product of two"),
    ("Softmax", "Softmax"), ("Sigmoid", "Sigmoid"), ("Exp", "Exp"), ("LayerNormalization", "LayerNormalization"),
    ("Tanh", "Tanh"), ("LeakyRelu", "LeakyRelu"), ("PRelu", "PRelu"), ("Max", "Maximum of two"), ("Min", "Min"),
    ("Abs", "Abs"), ("Sqrt", "Sqrt"), ("Pow", "Pow"), ("ReduceMax", "ReduceMax"), ("ReduceL2", "ReduceL2"),
    ("LSTM", "LSTM"), ("LpPool", "LpPool"), ("HardSigmoid", "squeeze and excite"), ("MaxPool", "u"),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "name"), NOT_LINEAR, ids=[f"{op} in {name}" for op, name in NOT_LINEAR])
def test_an_operator_wrongly_taken_for_linear_fails_the_proof(
    monkeypatch: pytest.MonkeyPatch, op_type: str, name: str
) -> None:
    entry = entry_of(name)
    model = entry.make()
    assert_converges(convert(model), entry, entry.feeds(model))
    wrong(monkeypatch, op_type)
    network = convert(model)
    assert any(
        node.op_type == op_type and network.classes[node.name] is NodeClass.LINEAR for node in network.view.nodes
    )
    with pytest.raises(AssertionError, match=FAILS):
        assert_converges(network, entry, entry.feeds(model))


def currents_as_means(emitter: StepEmitter, tensor: str, t: int) -> str:
    """What a rate-exact node gets if nobody sums: the spikes of one step."""
    return emitter.current(tensor, t)


@pytest.mark.parametrize("name", ["Softmax", "squeeze and excite", "MaxPool"])
def test_an_emitter_that_confuses_the_two_forms_fails_the_proof(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The other confusion, a mean read as a current, is no such case: the mean of means has the same limit."""
    entry = entry_of(name)
    model = entry.make()
    network = convert(model)
    monkeypatch.setattr(StepEmitter, "mean", currents_as_means)
    with pytest.raises(AssertionError, match=FAILS):
        assert_converges(network, entry, entry.feeds(model))


def test_thresholds_that_activations_exceed_fail_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of("transposes")
    model = entry.make()
    monkeypatch.setattr(proof, "_MARGIN", 0.5)
    with pytest.raises(AssertionError, match=FAILS):
        assert_converges(convert(model), entry, entry.feeds(model))
