"""Real servers on loopback load bundles unchanged, and answer what onnxruntime answers.

Each in an environment of its own; original and factorized model side by side. The figures that
are printed (pytest -s) are those of the machine it runs on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxrank.serving import Tensor, bundle
from onnxrank.serving.protocol import Request, binary_request, json_request

from .environments import Environment, environment
from .models import KINDS, Feeds, half, half_feeds, text, text_feeds, vectors, with_default
from .servers import LOOPBACK, Server, answers, ask, free_port, get, post, script, serving

pytestmark = pytest.mark.slow

MLSERVER = ("mlserver==1.7.1", "onnxruntime")
MLFLOW = ("mlflow-skinny==3.17.2", "onnxruntime", "pandas", "fastapi", "uvicorn")
TRITON = ("nvidia-pytriton==0.7.0", "onnxruntime", "numpy<2")

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Served:
    """A server, its environment, and the models that it serves, by name."""

    server: Server
    environment: Environment
    models: dict[str, Path]
    repositories: dict[str, Path]


def report(name: str, server: Server, environment: Environment) -> None:
    print(
        f"\n{name}: environment {environment.seconds:.0f} s, {environment.megabytes:.0f} MB; "
        f"ready in {server.seconds:.1f} s, {server.megabytes:.0f} MB"
    )


def write_models(folder: Path) -> dict[str, Path]:
    made = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir(parents=True)
        made[name] = kind.write(folder / name)
    return made


def check(
    served: Served, name: str, outputs: dict[str, np.ndarray[Any, Any]], feeds: Feeds, folder: Path
) -> None:
    """Bit for bit what onnxruntime gives in the server's own environment."""
    expected = served.environment.expected(served.models[name], feeds, folder)
    assert set(outputs) == set(expected)
    for output, value in expected.items():
        found = outputs[output]
        assert found.shape == (value.shape or found.shape), output
        assert found.size == value.size
        np.testing.assert_array_equal(found.reshape(value.shape), value, err_msg=output)


# --- MLServer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = environment(*MLSERVER, below=(3, 13))
    folder = tmp_path_factory.mktemp("mlserver")
    models = write_models(folder / "models")
    (folder / "all").mkdir()
    repositories = {name: folder / "all" / name for name in models}
    for name, path in models.items():
        bundle(path, "mlserver", repositories[name], name=name)
    bundle(half(), "mlserver", folder / "all/batched", max_batch=8, name="batched")
    bundle(with_default(), "mlserver", folder / "all/optional", name="optional")
    ports = {f"{kind}_port": free_port() for kind in ("http", "grpc", "metrics")}
    settings = json.loads((repositories["text"] / "settings.json").read_text())
    assert settings["host"] == LOOPBACK
    (folder / "all/settings.json").write_text(json.dumps({**settings, **ports}))
    with serving(
        [home.bin / "mlserver", "start", folder / "all"],
        ports["http_port"],
        "/v2/health/ready",
        variables=home.variables(),
        folder=folder,
    ) as server:
        report("mlserver", server, home)
        yield Served(server, home, models, repositories)


@pytest.mark.parametrize("name", KINDS)
def test_mlserver(mlserver: Served, name: str, tmp_path: Path) -> None:
    feeds = KINDS[name].feeds()
    folder = mlserver.repositories[name]
    settings = json.loads((folder / "model-settings.json").read_text())
    request = json_request(_tensors(settings["inputs"]), feeds)
    check(mlserver, name, ask(mlserver.server, name, request), feeds, tmp_path)
    sample = Request("request.json", (folder / "request.json").read_bytes())
    assert ask(mlserver.server, name, sample)


def _tensors(inputs: list[dict[str, Any]]) -> Any:
    return [Tensor(i["name"], i["datatype"], tuple(i["shape"]), ()) for i in inputs]


def test_mlserver_says_what_is_wrong(mlserver: Served) -> None:
    entry = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]}
    for inputs, message in (
        ([entry], "missing inputs: attention_mask"),
        ([entry, {**entry, "name": "attention_mask", "data": [1]}], "input attention_mask"),
        ([entry, {**entry, "name": "attention_mask", "shape": [1, 1, 2]}], "attention_mask"),
        ([entry, {**entry, "name": "attention_mask"}, {**entry, "name": "other"}], "other"),
    ):
        body = json.dumps({"inputs": inputs}).encode()
        with pytest.raises(AssertionError, match=f"400.*{message}"):
            ask(mlserver.server, "text", Request("r", body))


def test_mlserver_joins_requests(mlserver: Served, tmp_path: Path) -> None:
    feeds = half_feeds()
    settings = json.loads(
        (mlserver.repositories["half"].parent / "batched/model-settings.json").read_text()
    )
    request = json_request(_tensors(settings["inputs"]), feeds)
    check(mlserver, "half", ask(mlserver.server, "batched", request), feeds, tmp_path)


@pytest.mark.parametrize("target", ["mlserver", "triton"])
def test_optional_inputs(target: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(target).server
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    bias = {"name": "bias", "shape": [2], "datatype": "FP32", "data": [10.0, 20.0]}
    for inputs, expected in (([x], [[2.0, 3.0]]), ([x, bias], [[11.0, 22.0]])):
        question = Request("r", json.dumps({"inputs": inputs}).encode())
        assert ask(server, "optional", question)["y"].tolist() == expected


# --- MLflow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_mlflow(name: str, tmp_path: Path) -> None:
    home = environment(*MLFLOW, below=(3, 14))
    models = write_models(tmp_path / "models")
    folder = tmp_path / "bundle"
    bundle(models[name], "mlflow", folder, name=name)
    port = free_port()
    command = ["models", "serve", "-m", folder, "--env-manager", "local", "-h", LOOPBACK]
    with serving(
        [home.bin / "mlflow", *command, "-p", str(port)],
        port,
        "/ping",
        variables={**home.variables(), "MLFLOW_DISABLE_TELEMETRY": "true"},
        folder=tmp_path,
    ) as server:
        report(f"mlflow, {name}", server, home)
        served = Served(server, home, models, {name: folder})
        feeds = KINDS[name].feeds()
        nested = {key: value.tolist() for key, value in feeds.items()}
        check(
            served, name, invoke(served, name, {"inputs": nested}, feeds, tmp_path), feeds, tmp_path
        )
        assert post(
            f"{server.url}/invocations",
            (folder / "request.json").read_bytes(),
            {"Content-Type": "application/json"},
        )


def invoke(
    served: Served, name: str, question: dict[str, Any], feeds: Feeds, folder: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name; JSON has no types, so they are those that onnxruntime gives."""
    body, _ = post(
        f"{served.server.url}/invocations",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    types = served.environment.expected(served.models[name], feeds, folder)
    found = json.loads(body)["predictions"]
    return {key: np.array(found[key], value.dtype) for key, value in types.items()}


# --- README.md, as a user runs it -----------------------------------------------------------------


def commands(folder: Path, port: int) -> str:
    """The three commands of a README in one script, at another port, and a wait for the end."""
    text = (folder / "README.md").read_text()
    start, question, end = (part.split("```")[0] for part in text.split("```sh\n")[1:])
    script = f"{start}\n{question}\n{end}\nwait || true\n"
    return re.sub(r"(?<=127.0.0.1:)\d+|(?<=--port )\d+", str(port), script)


def test_the_readme_of_mlserver(tmp_path: Path) -> None:
    home = environment(*MLSERVER, below=(3, 13))
    bundle(text(), "mlserver", tmp_path / "out", name="m")
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    settings |= {key: free_port() for key in settings if key.endswith("_port")}
    (tmp_path / "out/settings.json").write_text(json.dumps(settings))
    port = settings["http_port"]
    printed = script(commands(tmp_path / "out", port), tmp_path / "out", home.variables())
    assert '"model_name":"m"' in printed and '"name":"embedding"' in printed
    assert not answers(f"http://{LOOPBACK}:{port}/v2/health/live")


def test_the_readme_of_mlflow(tmp_path: Path) -> None:
    home, port = environment(*MLFLOW, below=(3, 14)), free_port()
    bundle(text(), "mlflow", tmp_path / "out", name="m")
    printed = script(commands(tmp_path / "out", port), tmp_path / "out", home.variables())
    assert '{"predictions": {"embedding":' in printed
    assert not answers(f"http://{LOOPBACK}:{port}/ping")


# --- Triton ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = environment(*TRITON, below=(3, 13))
    folder = tmp_path_factory.mktemp("triton")
    models = write_models(folder / "models")
    repositories = {name: folder / name for name in models}
    for name, path in models.items():
        bundle(path, "triton", repositories[name], name=name)
    bundle(text(), "triton", folder / "batched", max_batch=8, name="batched")
    bundle(vectors(), "kserve", folder / "rows", max_batch=8, name="rows", version=3)
    bundle(with_default(), "triton", folder / "optional", name="optional")
    repositories |= {name: folder / name for name in ("batched", "rows", "optional")}
    port, core = free_port(), home.packages / "pytriton/tritonserver"
    options = [f"--model-repository={path}" for path in repositories.values()]
    options += [f"--backend-directory={backends(core, folder / 'backends')}"]
    options += [f"--http-address={LOOPBACK}", f"--http-port={port}", "--allow-grpc=false"]
    options += ["--allow-metrics=false", "--exit-timeout-secs=5"]
    libraries = [home.packages / "nvidia_pytriton.libs", python_library()]
    with serving(
        [core / "bin/tritonserver", *options],
        port,
        "/v2/health/ready",
        variables={**home.variables(), "LD_LIBRARY_PATH": ":".join(map(str, libraries))},
        folder=folder,
    ) as server:
        report("triton", server, home)
        yield Served(server, home, models, repositories)


def backends(core: Path, folder: Path) -> Path:
    """Triton's python backend, and a stand-in named onnxruntime that runs on it."""
    shutil.copytree(core / "backends/python", folder / "python")
    version = "{}.{}".format(*sys.version_info[:2])
    shutil.copy(
        core / f"python_backend_stubs/{version}/triton_python_backend_stub", folder / "python"
    )
    (folder / "onnxruntime").mkdir()
    shutil.copy(HERE / "stand_in.py.txt", folder / "onnxruntime/model.py")
    return folder


def python_library() -> Path:
    return Path(sysconfig.get_config_var("LIBDIR"))


def sample(folder: Path) -> Request:
    """The bundle's own request file."""
    path = next(folder.glob("request.*"))
    if path.suffix == ".json":
        return Request(path.name, path.read_bytes())
    readme = (folder / "README.md").read_text()
    length = int(readme.split("Inference-Header-Content-Length: ")[1].split("'")[0])
    return Request(path.name, path.read_bytes(), length)


@pytest.mark.parametrize("name", KINDS)
def test_triton(triton: Served, name: str, tmp_path: Path) -> None:
    feeds = KINDS[name].feeds()
    inputs = _tensors(metadata(triton, name)["inputs"])
    wire = {key: value.reshape(value.shape or (1,)) for key, value in feeds.items()}
    makers = [binary_request] if name == "half" else [json_request, binary_request]
    for make in makers:
        outputs = ask(triton.server, name, make(inputs, wire))
        check(triton, name, outputs, feeds, tmp_path)
    assert ask(triton.server, name, sample(triton.repositories[name]))


def metadata(served: Served, name: str) -> Any:
    return json.loads(get(f"{served.server.url}/v2/models/{name}"))


_PARSE = """\
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
for path in sys.argv[1:]:
    text_format.Parse(open(path).read(), model_config_pb2.ModelConfig())
"""


def test_triton_schema_reads_every_configuration(triton: Served) -> None:
    """By the schema in the server's environment; a test of bundles does it without a server."""
    paths = [path / name / "config.pbtxt" for name, path in triton.repositories.items()]
    command = [triton.environment.bin / "python", "-c", _PARSE, *paths]
    variables = triton.environment.variables()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
    assert done.returncode == 0, done.stderr


def test_triton_batches(triton: Served, tmp_path: Path) -> None:
    feeds = text_feeds()
    request = json_request(_tensors(metadata(triton, "batched")["inputs"]), feeds)
    outputs = ask(triton.server, "batched", request)
    check(triton, "text", outputs, feeds, tmp_path)
    for name in ("batched", "rows"):
        assert ask(triton.server, name, sample(triton.repositories[name]))
