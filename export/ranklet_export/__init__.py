"""Turn a training run into a bundle: one ONNX graph, checked against the model it came from."""
