"""Triton's clients have a model come and go, asking one worker after the other; prints, after each
step, what its workers have made of it and what each of them says.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpc_client  # type: ignore[import-not-found]
import tritonclient.http as http_client  # type: ignore[import-not-found]

CASE: dict[str, Any] = json.load(sys.stdin)
MODEL = CASE["model"]
KEY = {"authorization": f"Bearer {CASE['key']}"}


def states() -> list[str]:
    """Of the model's package, by worker."""
    found = [json.loads(Path(path).read_text()) for path in CASE["states"]]
    return [package["state"] for each in found for package in each["packages"]]


def become(wanted: str) -> list[str]:
    """The states, once they are as wanted or time is up."""
    until = time.monotonic() + 30
    while set(states()) != {wanted} and time.monotonic() < until:
        time.sleep(0.01)
    return states()


def told() -> list[Any]:
    """What each worker says of the model, on each wire."""
    found: list[Any] = []
    for url in CASE["http"]:
        with http_client.InferenceServerClient(url) as client:
            index = client.get_model_repository_index(headers=dict(KEY))
            ready = client.is_model_ready(MODEL, headers=dict(KEY))
            found.append([index[0]["state"], ready])
    for url in CASE["grpc"]:
        with grpc_client.InferenceServerClient(url) as client:
            listed = client.get_model_repository_index(headers=KEY)
            ready = client.is_model_ready(MODEL, headers=KEY)
            found.append([listed.models[0].state, ready])
    return found


STEPS = []
for module, urls in ((http_client, CASE["http"]), (grpc_client, CASE["grpc"])):
    for first, second in (urls, reversed(urls)):
        with module.InferenceServerClient(first) as client:
            client.unload_model(MODEL, headers=dict(KEY))
        STEPS.append(["cold", become("cold"), told()])
        with module.InferenceServerClient(second) as client:
            client.load_model(MODEL, headers=dict(KEY))
        STEPS.append(["ready", become("ready"), told()])
print(json.dumps(STEPS))
