"""ONNX graphs as functions that torch differentiates: a table of operators, and who runs it."""
