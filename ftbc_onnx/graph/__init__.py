"""The graph room: everything that reads or writes ONNX graphs."""
