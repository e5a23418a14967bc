"""A pass for Microsoft Olive: compress an ONNX model as a step of an Olive workflow.

Olive finds it through a package configuration, without a patch; this prints one, Olive's own with
the pass added::

    python -m onnxrank.olive > package.json
    olive run --config workflow.json --package-config package.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.search.search_parameter import Categorical

# Exit code of 'compress' where nothing is worth splitting.
_NOTHING = 1


class OnnxRank(Pass):  # type: ignore[misc]
    """Factorize the layers that use little of their rank on data."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "data": PassConfigParam(
                type_=str,
                required=True,
                description="What to measure on, as --data takes it.",
            ),
            "energy": PassConfigParam(
                type_=float,
                default_value=None,
                search_defaults=Categorical([0.9, 0.99, 0.999]),
                description="Share of the energy that the kept directions hold.",
            ),
            "arguments": PassConfigParam(
                type_=list[str],
                default_value=[],
                description="Further options of 'onnxrank compress', as on the command line.",
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        output = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        output.parent.mkdir(parents=True, exist_ok=True)
        words = [model.model_path, output, "--data", config.data, *config.arguments]
        if config.energy is not None:
            words += ["--energy", config.energy]
        # A process of its own: the command line is the contract, Olive's logging stays as it is.
        command = [sys.executable, "-m", "onnxrank", "--quiet", "compress", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == _NOTHING:
            return model
        if done.returncode:
            raise ValueError(done.stderr.strip())
        return ONNXModelHandler(model_path=str(output.parent), onnx_file_name=output.name)


def package_configuration() -> dict[str, Any]:
    """Olive's own package configuration, with this pass in it."""
    text = Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    found["passes"][OnnxRank.__name__] = {
        "module_path": f"onnxrank.olive.{OnnxRank.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return found


if __name__ == "__main__":
    print(json.dumps(package_configuration(), indent=2))
