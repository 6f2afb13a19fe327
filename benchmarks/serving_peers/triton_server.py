# /// script
# dependencies = ["onnxruntime"]
# [tool.tapster]
# without-dependencies = ["nvidia-pytriton==0.7.0", "numpy==1.26.4"]
# ///
"""Triton, from the wheel of PyTriton, with its Python backend on ONNX Runtime.

PyTriton itself is not used (and what it needs is not installed): the wheel brings the server's
binary and its backend, whose stub must lie beside it; the stub answers with no bytes where NumPy is
2 or later. Triton batches what waits and gives the
backend whole batches, without waiting for more.

`python triton_server.py MODEL_FOLDER HTTP_PORT GRPC_PORT`
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import onnxruntime as ort

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
{tensors}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "model" value {{ string_value: "{model}" }} }}
"""
DATATYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


def configure(folder: Path, repository: Path) -> None:
    """Write the model repository: the configuration and the backend's Python model."""
    session = ort.InferenceSession(folder / "model.onnx")
    tensors = [
        f'{kind} {{ name: "{value.name}" data_type: {DATATYPES[value.type]}'
        f" dims: {list(value.shape[1:]) or [1]} }}"
        for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for value in values
    ]
    place = repository / folder.name
    (place / "1").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), place / "1" / "model.py")
    text = CONFIG.format(name=folder.name, tensors="\n".join(tensors), model=folder / "model.onnx")
    (place / "config.pbtxt").write_text(text)


def bring_stub(installed: Path, backends: Path) -> None:
    """A backend folder with the stub of this interpreter beside the backend."""
    shutil.copytree(installed / "backends" / "python", backends / "python")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = installed / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")


def main(folder: Path, port: int, grpc_port: int) -> None:
    """Become the server."""
    packages = Path(sysconfig.get_path("purelib"))
    installed = packages / "pytriton" / "tritonserver"
    with_triton = folder / "triton"
    shutil.rmtree(with_triton, ignore_errors=True)
    configure(folder, with_triton / "models")
    bring_stub(installed, with_triton / "backends")
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(str(place) for place in libraries)
    os.environ |= {"PACKAGES": str(packages), "PYTHONHOME": sys.base_prefix}
    server = installed / "bin" / "tritonserver"
    os.execv(
        server,
        [
            str(server),
            f"--model-repository={with_triton / 'models'}",
            f"--backend-directory={with_triton / 'backends'}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            "--allow-metrics=false",
            "--log-info=false",
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
