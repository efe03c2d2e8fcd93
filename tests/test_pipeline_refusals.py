"""What the conversion refuses before any work: nodes, data and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import numbers, parse
from networks import inputs, residual
from pipeline_cases import quick, working

from ftbc_onnx import ConfigError, ConvertConfig, DataError, ModelError, VerificationError, convert, pipeline

REFUSED = """g (float[N,4] x) => (float[N,4] y)
    { r = Relu(x)  a = Bernoulli(r)  b = RandomNormalLike(r)  c = org.acme.Gate(r)  y = Sum(a, b, c) }"""


class TestRefusals:
    def test_all_of_them_at_once_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(ModelError) as caught:
            convert(parse(REFUSED, domains='"org.acme" : 1'), numbers(8, 4))
        message = str(caught.value)
        assert "3 node(s) refused" in message
        for op in ("Bernoulli 'a'", "RandomNormalLike 'b'", "Gate 'c'"):
            assert op in message
        assert "\n" not in message
        assert not begun

    def test_nothing_to_convert(self) -> None:
        with pytest.raises(ModelError, match="has no activation to convert"):
            convert(parse("g (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }"), numbers(8, 4))

    @pytest.mark.parametrize("scope", [{"exclude": ["Relu"]}, {"until": "c"}])
    def test_nothing_left_to_convert(self, scope: dict[str, Any]) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { c = Neg(x)  y = Relu(c) }"
        with pytest.raises(ConfigError, match=r"--until leave out all its activations \(1\): leave some in"):
            convert(parse(text), numbers(8, 4), **scope)

    def test_no_output_behind_an_activation(self) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  s = Shape(r)  y = Expand(x, s) }"
        with pytest.raises(ModelError, match=r"no output depends on an activation|has no activation to convert"):
            convert(parse(text), numbers(8, 4))

    def test_data_that_do_not_fit_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(DataError, match=r"\[N, 2, 4, 4\]"):
            quick(data=numbers(16, 3, 4, 4))
        with pytest.raises(DataError, match="evaluation data"):
            quick(eval_data=numbers(16, 3, 4, 4))
        with pytest.raises(DataError, match="16 samples are used, fewer than one batch of 17: use --batch-size 16 or"):
            quick(batch_size=17)
        assert not begun

    def test_samples_that_are_mixed_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  m = ReduceMean<axes=[0]>(r)  y = Sub(r, m) }"
        with pytest.raises(VerificationError, match="the model mixes the samples"):
            convert(parse(text), numbers(16, 4), steps=2)
        assert not begun

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stepz": 4}, "unknown option 'stepz': did you mean 'steps'?"),
            ({"treshold": "max"}, "unknown option 'treshold': did you mean 'threshold'?"),
            ({"qqq": 1}, "unknown option 'qqq': the options are steps, neuron"),
            ({"steps": 0}, "T (steps) is 0: it must be a whole number, at least 1"),
            ({"steps": 2.5}, "T (steps) is 2.5"),
            ({"steps": True}, "T (steps) is True"),
            ({"steps": None}, "T (steps) is None"),
            ({"calib_samples": -1}, "calib_samples is -1"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"threshold": "mean"}, "threshold is 'mean'"),
            ({"rule": "solv"}, "rule is 'solv' (did you mean 'solve'?): choose one of solve, paper, none"),
            ({"percentile": 0}, "percentile is 0: it must be above 0 and at most 100"),
            ({"percentile": 101.0}, "percentile is 101.0"),
            ({"percentile": float("nan")}, "percentile is nan"),
            ({"percentile": "99"}, "percentile is 99"),
            ({"alpha": -0.4}, "alpha is -0.4: it must be a positive number"),
            ({"alpha": float("inf")}, "alpha is inf"),
            ({"alpha": None}, "alpha is None"),
            ({"steps": "2"}, "T (steps) is '2': it must be a whole number"),
            ({"steps": 10**20}, "T (steps) is 100000000000000000000: it must be at most 16777216"),
            ({"opset": "17"}, "opset is '17': it must be a whole number"),
            ({"until": 5}, "until is 5: it must be text"),
            ({"neuron": ["if"]}, "neuron is ['if']: it must be text"),
            ({"coding": 5}, "coding is 5: it must be text"),
            ({"device": 5}, "device is 5: it must be text"),
            ({"include": 5}, "include is 5: it must be text, or several of them"),
            ({"exclude": None}, "exclude is None: it must be text"),
            ({"fuse": (3,)}, "fuse is (3,): it must be text"),
            ({"seed": 1.5}, "seed is 1.5: it must be a whole number"),
            ({"label_offset": 0.5}, "label_offset is 0.5: it must be a whole number"),
            ({"config": {"steps": 2}}, "config is {'steps': 2}: it must be an ftbc_onnx.ConvertConfig"),
            ({"preprocessing": {"scale": 2}}, "preprocessing is {'scale': 2}: it must be an ftbc_onnx.Preprocessing"),
            ({"per_channel": "no"}, "per_channel is 'no': it must be True or False"),
            ({"neuron": "lif"}, "unknown neuron 'lif' (did you mean 'if'?): choose one of if, signed"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(ConfigError) as caught:
            convert(residual(), inputs(16), **options)
        assert str(caught.value).startswith(message)
        assert not begun

    @pytest.mark.parametrize("model", [None, 5, bytearray(b"model")])
    def test_what_is_no_model(self, model: Any) -> None:
        with pytest.raises(
            ModelError, match=f"the model is a {type(model).__name__}: give a path, the bytes of a file"
        ):
            convert(model, inputs(16))

    def test_numbers_of_numpy_are_numbers(self) -> None:
        config = ConvertConfig(
            steps=np.int64(4), alpha=np.float32(0.5), early_exit=np.float64(2), batch_size=np.int32(3)
        )
        assert config.as_dict() == ConvertConfig(steps=4, alpha=0.5, early_exit=2.0, batch_size=3).as_dict()
        assert not any(isinstance(value, np.generic) for value in config.as_dict().values())

    def test_options_beside_a_config(self) -> None:
        with pytest.raises(ConfigError, match="option 'steps' is given beside a config"):
            convert(residual(), inputs(16), config=ConvertConfig(), steps=4)

    def test_a_model_that_is_not_its_plan_is_not_given_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tampered(network: Any, plan: Any, form: str, **_: Any) -> Any:
            return emit(network, plan.without_biases(), form)

        emit = pipeline.emit
        monkeypatch.setattr(pipeline, "emit", tampered)
        with pytest.raises(VerificationError):
            quick(gate=False)
        assert quick(verify=False).report["verification"] is None
