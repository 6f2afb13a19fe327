"""`mlserver infer`, an inference client that sends a file. (It has no gRPC: it says so itself.)"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import INPUT, SECONDS, Served

BATCH = 3


@pytest.mark.parametrize("form", ["JSON", "binary"])
def test_a_file_of_requests_is_answered(
    served: Served, interpreter: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    lines = [
        {
            "id": str(number),
            "inputs": [{"name": INPUT, "shape": [1, 30], "datatype": "FP32", "data": row}],
            "outputs": [{"name": "prediction"}, {"name": "probabilities"}],
        }
        for number, row in enumerate(served.rows)
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["infer", "-u", served.case["http"], "-m", "cancer", "-i", requests, "-o", answers]
    command += [
        "-w",
        "4",
        "-s",
        str(BATCH),
        "-r",
        "1",
        "-H",
        f"Authorization: Bearer {served.server.key}",
    ]
    done = subprocess.run(
        [interpreter("mlserver").with_name("mlserver"), *command]
        + (["--binary-data"] if form == "binary" else []),
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in answers.read_text().splitlines():
        answer = json.loads(line)
        assert "outputs" in answer, line
        values = {output["name"]: output["data"] for output in answer["outputs"]}
        found[answer["id"]] = values
    assert len(found) == len(served.rows)
    merged = {
        "prediction": [found[str(n)]["prediction"][0] for n in range(len(served.rows))],
        "probabilities": [found[str(n)]["probabilities"] for n in range(len(served.rows))],
    }
    served.check({form: merged})
