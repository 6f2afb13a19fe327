"""The committed descriptors are those of the .proto files, and say what the stock services say.

`golden.json` holds messages that the published packages wrote (tritonclient 2.73,
tensorflow-serving-api 2.21 on TensorFlow's protos, grpcio-health-checking and grpcio-reflection
1.81), with every field filled that we know, and what those packages read in them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToDict

import tapster.contract
from tapster.serving.rpc.encoding import delimited, header, number, text, varint
from tapster.serving.rpc.messages import message, pool

PROTOS = Path(tapster.contract.__file__).parent / "protos"
GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_text())


def test_the_descriptors_are_fresh(tmp_path: Path) -> None:
    made = tmp_path / "fresh"
    files = sorted(path.name for path in PROTOS.glob("*.proto"))
    options = ["-I.", "--include_imports", f"--descriptor_set_out={made}", *files]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], cwd=PROTOS, check=True)
    assert made.read_bytes() == (PROTOS / "descriptors.binpb").read_bytes(), "run: make protos"


@pytest.mark.parametrize("golden", GOLDEN, ids=[case["message"] for case in GOLDEN])
def test_what_stock_packages_write_is_understood(golden: dict[str, Any]) -> None:
    wire = bytes.fromhex(golden["wire"])
    found = message(golden["message"]).FromString(wire)
    said = MessageToDict(found, preserving_proto_field_name=True, descriptor_pool=pool())
    assert said == golden["says"]
    assert found.SerializeToString(deterministic=True) == wire


def test_the_stock_clients_names_stay_free() -> None:
    message("inference.ModelInferRequest")
    for name in ("inference.ModelInferRequest", "tensorflow.TensorProto"):
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindMessageTypeByName(name)


def test_pieces_are_spelled_as_protobuf_spells_them() -> None:
    response = message("inference.ModelInferResponse")
    for size in (0, 1, 127, 128, 300, 70_000):
        expected = response(raw_output_contents=[b"x" * size]).SerializeToString()
        assert delimited(6, b"x" * size) == header(6, size) + b"x" * size == expected
    assert text(1, "é") == response(model_name="é").SerializeToString()
    assert text(1, "") == number(3, 0) == b""
    output = message("inference.ModelMetadataResponse.TensorMetadata")
    for value in (1, 127, 128, 2**31, 2**62, -1):
        expected = output(shape=[value]).SerializeToString()
        assert delimited(3, varint(value)) == expected
    load = message("inference.ModelStatistics")
    assert number(3, 2**40) == load(last_inference=2**40).SerializeToString()
