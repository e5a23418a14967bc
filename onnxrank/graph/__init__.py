"""The ONNX side: read a model, find its linear maps, rewrite it. No data, no session."""
