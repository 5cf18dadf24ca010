"""ONNX: a protobuf whose graph says what it computes."""
