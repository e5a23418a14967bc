"""What is asked of a target, and what it answers: names, signature, sample; files by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxrank.serving.sample import Sample
from onnxrank.serving.signature import Signature, Tensor


@dataclass(frozen=True)
class Order:
    """One model to serve.

    Attributes
    ----------
    name : str
        What clients call it.
    version : int
    max_batch : int
        Most samples the server may run at once; 0 leaves batches as clients send them.
    source : str
        What errors call the model.
    sha256 : str
    signature : Signature
    sample : Sample
    onnxruntime : str
        The version that has loaded the model.
    """

    name: str
    version: int
    max_batch: int
    source: str
    sha256: str
    signature: Signature
    sample: Sample
    onnxruntime: str


@dataclass(frozen=True)
class Layout:
    """The files of a bundle.

    Attributes
    ----------
    model : str
        Path of the .onnx file; its external data go beside it.
    files : mapping of str to bytes
        All others, by path.
    """

    model: str
    files: Mapping[str, bytes]


def readme(order: Order, title: str, start: str, ask: str, stop: str, notes: str) -> bytes:
    """README.md: what is served, and the three commands."""
    sample = (
        "The sample request holds placeholder values."
        if order.sample.works
        else "The sample request is of the right types only: "
        "onnxruntime did not run the model on it. Put real values in."
    )
    return f"""\
# {order.name}, for {title}

Start:

```sh
{start}
```

Ask:

```sh
{ask}
```

Stop:

```sh
{stop}
```

{sample} {notes}

## Inputs

{_table(order.signature.inputs)}

## Outputs

{_table(order.signature.outputs)}

model.onnx has SHA-256 `{order.sha256}`.
""".encode()


def _table(tensors: tuple[Tensor, ...]) -> str:
    rows = ["| name | type | shape |", "| --- | --- | --- |"]
    for tensor in tensors:
        name = tensor.name.replace("|", "\\|")
        kind = tensor.datatype + (", optional" if tensor.optional else "")
        rows.append(f"| `{name}` | {kind} | {list(tensor.shape)} |")
    return "\n".join(rows)
