"""``python -m ftbc_onnx``."""

from ftbc_onnx.cli import main

if __name__ == "__main__":
    main()
