"""Triton's clients over TLS, with one case from stdin; prints what came back."""

import json
import sys

import numpy as np
import tritonclient.grpc as rpc  # type: ignore[import-not-found]
import tritonclient.http as rest  # type: ignore[import-not-found]

CASE = json.load(sys.stdin)
HEADERS = {"authorization": f"Bearer {CASE['key']}"}
ROW = np.array([[0.25, 0.5]], np.float32)
found = {}
for name, library, options in (
    ("http", rest, {"ssl_options": {"ca_certs": CASE["authority"]}}),
    ("grpc", rpc, {"root_certificates": CASE["authority"]}),
):
    with library.InferenceServerClient(CASE[name], ssl=True, **options) as client:
        given = library.InferInput("fp32", [1, 2], "FP32")
        given.set_data_from_numpy(ROW)
        answer = client.infer("line", [given], headers=dict(HEADERS))
        found[name] = {"live": client.is_server_live(), "y": answer.as_numpy("y").tolist()}
print(json.dumps(found))
