"""Converts a trained ANN in ONNX into a spiking network in ONNX that plain onnxruntime runs."""
