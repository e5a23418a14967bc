"""Start a server on loopback, ask it, and stop it whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxrank.serving.protocol import Request

LOOPBACK = "127.0.0.1"
_PATIENCE = 60.0

DTYPES = {
    "BOOL": np.bool_,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "BYTES": np.str_,
}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes
    ----------
    url : str
    seconds : float
        From start to ready.
    megabytes : float
        Memory of its processes when it was ready.
    """

    url: str
    seconds: float
    megabytes: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | os.PathLike[str]],
    port: int,
    ready: str,
    *,
    variables: Mapping[str, str],
    folder: Path,
) -> Iterator[Server]:
    """Run `command` until the body ends; it is ready when `ready` answers 200."""
    url = f"http://{LOOPBACK}:{port}"
    log = folder / "server.log"
    start = time.monotonic()
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not answers(url + ready):
            late = time.monotonic() - start > _PATIENCE
            assert process.poll() is None and not late, log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)
        yield Server(url, time.monotonic() - start, memory(process.pid))
    finally:
        stop(process)


def script(text: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What a bash script prints; all that it started has ended afterwards."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", text],
        cwd=folder,
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        printed = process.communicate(timeout=180)[0].decode(errors="replace")
        assert process.returncode == 0, printed[-3000:]
        return printed
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        if sign == signal.SIGTERM:
            time.sleep(0.2)
    process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def memory(group: int) -> float:
    """Resident megabytes of a process group."""
    pages = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                pages += int((entry / "statm").read_text().split()[1])
        except (OSError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return bytes(reply.read())


def post(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    """The answer's body and headers; an error of the server as its own words."""
    request = urllib.request.Request(url, data=body, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code}: {error.read()[:500]!r}") from None


def ask(server: Server, model: str, request: Request) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name, from an Open Inference Protocol server."""
    headers = {"Content-Type": "application/json"}
    if request.json_length is not None:
        headers["Inference-Header-Content-Length"] = str(request.json_length)
        headers["Content-Type"] = "application/octet-stream"
    body, found = post(f"{server.url}/v2/models/{model}/infer", request.body, headers)
    length = int(found.get("Inference-Header-Content-Length") or len(body))
    outputs, position = {}, length
    for entry in json.loads(body[:length])["outputs"]:
        dtype = DTYPES[entry["datatype"]]
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            value = np.array(entry["data"], dtype)
        else:
            raw = body[position : position + size]
            value = texts(raw) if dtype is np.str_ else np.frombuffer(raw, dtype)
            position += size
        outputs[entry["name"]] = value.reshape(entry["shape"])
    return outputs


def texts(raw: bytes) -> np.ndarray[Any, Any]:
    """Strings, each after its length."""
    found, position = [], 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        found.append(raw[position + 4 : end].decode())
        position = end
    return np.array(found, np.str_)
