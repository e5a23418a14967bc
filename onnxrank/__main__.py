"""``python -m onnxrank``."""

from onnxrank.cli import main

main(prog_name="onnxrank")
