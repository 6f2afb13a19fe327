"""Call an endpoint from a program that has nothing of Tapster installed: plain HTTP and JSON.

Run it with `python examples/call_over_http.py` after `examples/quickstart.py` against the same
server (`tapster up`). Any Open Inference v2 client can do the same.
"""

import json
import os
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENDPOINT = "cultivar"


def main() -> None:
    """Ask what the endpoint takes, then ask it about two rows."""
    home = Path(os.environ.get("TAPSTER_HOME", "~/.tapster")).expanduser()
    base = json.loads((home / "run.json").read_text())["rest_url"]
    key = (home / "admin.key").read_text().strip()

    # Every wine as `quickstart.py` knows it: one number for each of these columns.
    wines = {
        "alcohol": [14.23, 12.37], "malic_acid": [1.71, 0.94], "ash": [2.43, 1.36],
        "alcalinity_of_ash": [15.6, 10.6], "magnesium": [127.0, 88.0],
        "total_phenols": [2.8, 1.98], "flavanoids": [3.06, 0.57],
        "nonflavanoid_phenols": [0.28, 0.28], "proanthocyanins": [2.29, 0.42],
        "color_intensity": [5.64, 1.95], "hue": [1.04, 1.05],
        "od280/od315_of_diluted_wines": [3.92, 1.82], "proline": [1065.0, 520.0],
    }  # fmt: skip
    inputs = [
        {"name": name, "shape": [2, 1], "datatype": "FP32", "data": values}
        for name, values in wines.items()
    ]
    answer = post(f"{base}/v2/models/{ENDPOINT}/infer", {"inputs": inputs}, key)
    for output in answer["outputs"]:
        print(output["name"], output["data"])


def post(url: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Send JSON with a key, read JSON."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=10)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", parts.path, json.dumps(body), headers)
    found: dict[str, Any] = json.load(connection.getresponse())
    connection.close()
    return found


if __name__ == "__main__":
    main()
