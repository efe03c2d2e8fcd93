"""Multi-layer perceptrons of scikit-learn, as skl2onnx writes them, cut before what only names classes.

skl2onnx ends a classifier in operators of the domain ``ai.onnx.ml`` (ArrayFeatureExtractor, ZipMap, or a Cast to
strings), which look up the label. With ``zipmap`` off, the output ``probabilities`` does not depend on them: extracted
alone, it is standard operators only. A regressor is standard as it is written.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor

ACTIVATIONS = ["relu", "tanh", "logistic", "identity"]


def _data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((90, 5)).astype(np.float32)
    scores = x @ rng.standard_normal((5, max(classes, 2))) + np.abs(x[:, :1])
    return x, scores.argmax(1) if classes else scores[:, 0]


def whole(classes: int, activation: str = "relu", target: int = 13, columns: bool = False) -> onnx.ModelProto:
    """A fitted classifier of so many classes, or a regressor for none, with every output that skl2onnx gives it."""
    x, y = _data(classes)
    kind = MLPClassifier if classes else MLPRegressor
    net = kind(hidden_layer_sizes=(12, 8), activation=activation, max_iter=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(x, y)
        options = {"zipmap": "columns" if columns else False} if classes else {}
        return to_onnx(net, x[:1], target_opset={"": target, "ai.onnx.ml": 3}, options={id(net): options})


def numbers_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the outputs that are numbers, not labels."""
    wanted = [v.name for v in model.graph.output if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    inputs = [v.name for v in model.graph.input]
    cut = onnx.utils.Extractor(model).extract_model(inputs, wanted)
    del cut.opset_import[:]
    cut.opset_import.extend(o for o in model.opset_import if not o.domain)
    return cut
