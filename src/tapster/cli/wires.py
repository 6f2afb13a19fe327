"""One set of rows asked over three wires, and the answers held against the trainer's own."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapster.client import Client
from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest
from tapster.runtimes import parity

Answers = dict[str, Array]


@dataclass(frozen=True)
class Recorded:
    """Rows by column name, and what the trainer said of them: label and probabilities [n, k]."""

    rows: list[dict[str, float]]
    outputs: Answers


def recorded(manifest: Manifest, vectors: bytes) -> Recorded:
    """The rows of a package's parity vectors that have a number in every column."""
    batches = parity.load(vectors)
    table = np.concatenate([batch.inputs["numeric"] for batch in batches])
    whole = np.isfinite(table).all(axis=1)
    names = [column.name for column in manifest.signature.columns]
    rows = [dict(zip(names, map(float, row), strict=True)) for row in table[whole].tolist()]
    outputs = {
        name: np.concatenate([batch.outputs[name] for batch in batches])[whole]
        for name in batches[0].outputs
    }
    return Recorded(rows, outputs)


def check(answers: Answers, truth: Recorded, manifest: Manifest, wire: str) -> float:
    """The largest difference of a probability from the trainer's own.

    Raises TapsterError(unprocessable) when an answer is further off than the manifest tolerates.
    """
    classes = manifest.signature.classes
    bad = parity.compare(truth.outputs, answers, manifest.tolerance, classes)
    if bad:
        raise TapsterError(
            "unprocessable", f"{wire} does not answer as the trained model does: {bad[0]}"
        )
    return float(np.abs(answers["probabilities"] - truth.outputs["probabilities"]).max())


def by_command(home: Path, endpoint: str, rows: list[dict[str, float]]) -> Answers:
    """`tapster predict --file rows.csv --json`, as typed in a terminal."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path = home / "rows.csv"
    path.write_text(text.getvalue())
    words = ["predict", endpoint, "--file", str(path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tapster", *words],
        env={**os.environ, "TAPSTER_HOME": str(home), "TAPSTER_URL": "", "TAPSTER_KEY": ""},
        stdout=subprocess.PIPE,
        check=False,
    )
    document = json.loads(done.stdout)
    if "error" in document:
        raise TapsterError.from_dict(document["error"])
    return from_plain(document["predictions"])


def from_plain(predictions: Sequence[dict[str, Any]]) -> Answers:
    """Answers of the plain wire as arrays; probabilities in the order of the classes."""
    return {
        "prediction": np.array([row["prediction"] for row in predictions], np.object_),
        "probabilities": np.array(
            [list(row["probabilities"].values()) for row in predictions], np.float32
        ),
    }


def by_open_inference(client: Client, endpoint: str, rows: list[dict[str, float]]) -> Answers:
    """Open Inference v2: one tensor a column."""
    tensors = [
        {
            "name": name,
            "shape": [len(rows), 1],
            "datatype": "FP32",
            "data": [row[name] for row in rows],
        }
        for name in rows[0]
    ]
    answer = post(client, f"/v2/models/{endpoint}/infer", {"inputs": tensors})
    return {
        output["name"]: np.array(
            output["data"], np.object_ if output["datatype"] == "BYTES" else np.float32
        ).reshape(output["shape"])
        for output in answer["outputs"]
    }


def by_tf_serving(client: Client, endpoint: str, rows: list[dict[str, float]]) -> Answers:
    """TF Serving v1: rows as objects of column values."""
    answer = post(client, f"/v1/models/{endpoint}:predict", {"instances": rows})
    found = answer["predictions"]
    return {
        "prediction": np.array([row["prediction"] for row in found], np.object_),
        "probabilities": np.array([row["probabilities"] for row in found], np.float32),
    }


def post(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request to the inference port, as any HTTP client would send it.

    Raises TapsterError as the server refused it.
    """
    import httpx

    from tapster.client.transport import failure

    headers = {"Authorization": f"Bearer {client.address.key}"}
    response = httpx.post(client.rest_url + path, json=body, headers=headers, timeout=30)
    if response.status_code != 200:
        raise failure(response.status_code, response.content)
    found: dict[str, Any] = response.json()
    return found
