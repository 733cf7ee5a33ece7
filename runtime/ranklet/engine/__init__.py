"""The graphs of a bundle on onnxruntime: encode, append, score."""
