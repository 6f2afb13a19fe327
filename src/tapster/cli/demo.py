"""`tapster demo`: from a data file to a served model in a temporary home, each answer checked."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tapster.cli import evaluations, peer, profiles, tables, wires
from tapster.cli.output import console, print_json
from tapster.cli.progress import shown
from tapster.client import Client, connect
from tapster.contract.control import ModelVersion
from tapster.contract.manifest import Manifest
from tapster.core.blobs import LocalBlobs
from tapster.runtimes.package import open_package

DATASET: Final = "breast-cancer"
TARGET: Final = "diagnosis"
MODEL: Final = "tumour"
ENDPOINT: Final = "tumour"
CALLS: Final = 300
# It looks at the files of its server, and talks to it, as they are without these.
_NOT_THE_DEMOS: Final = ("TAPSTER_MASTER_KEY", "TAPSTER_TLS", "TAPSTER_CONTROL_URL")


@dataclass
class Story:
    """What happened, and how long each step took in seconds."""

    out: Any
    home: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and take its time."""
        self.out.print(f"\n{len(self.steps) + 1}. {title}")
        begun = time.perf_counter()
        yield
        took = time.perf_counter() - begun
        self.steps.append({"step": title, "seconds": round(took, 2)})
        self.out.print(f"   ({took:.1f} s)")

    def tell(self, what: Any) -> None:
        """Show something."""
        self.out.print(what)


def run(as_json: bool = False, seconds: float = 30.0, keep: bool = False) -> int:
    """The whole journey. 0 when every answer was the trained model's own; raises otherwise."""
    home = Path(tempfile.mkdtemp(prefix="tapster-demo-"))
    for name in [each for each in os.environ if each.startswith(_NOT_THE_DEMOS)]:
        del os.environ[name]
    story = Story(console(error=as_json), home)
    begun = time.perf_counter()
    try:
        _journey(story, seconds)
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
    story.facts["seconds"] = round(time.perf_counter() - begun, 1)
    _closing(story, home if keep else None)
    if as_json:
        print_json({"steps": story.steps, **story.facts})
    return 0


def _journey(story: Story, seconds: float) -> None:
    story.tell("Tapster's demo: a data file becomes a model that is called over the network.")
    with story.step("Start Tapster in a temporary home (SQLite, local files, free ports)"):
        client = connect(home=story.home)
        story.tell(f"   control {client.address.url}, inference {client.rest_url}")
    with client:
        source = _import(story, client)
        version = _train(story, client, seconds)
        manifest, vectors = _package(story, version)
        with story.step(f"Deploy it at the endpoint {ENDPOINT}"):
            live = client.deploy(f"{MODEL}@{version.version}", ENDPOINT)
            story.tell(f"   {live.status}; it answered its recorded vectors before taking traffic")
        truth = wires.recorded(manifest, vectors)
        _three_wires(story, client, truth, manifest)
        _speed(story, client, manifest, source, truth.rows[0])


def _import(story: Story, client: Client) -> Any:
    with story.step("Import a CSV file (569 tumours, 30 measurements) and look at it"):
        table, target, path = write_csv(story.home)
        with shown("import") as bar:
            made = client.data_add(DATASET, path, on_send=bar.send, on_progress=bar.job)
        ref = f"{DATASET}@{made.version}"
        story.tell(profiles.view(made, client.data_profile(ref), []))
    return table, target


def write_csv(home: Path) -> tuple[Any, Any, Path]:
    """scikit-learn's breast cancer data as a CSV file; its measurements, labels and path."""
    import csv

    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    labels = found.target_names[found.target]
    path = home / "breast_cancer.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*found.feature_names, TARGET])
        writer.writerows(
            [*map(float, row), label] for row, label in zip(found.data, labels, strict=True)
        )
    return found.data, labels, path


def _train(story: Story, client: Client, seconds: float) -> ModelVersion:
    with story.step(f"Train and compare the algorithms ({seconds:.0f} s to search)"):
        job = client.train(DATASET, TARGET, MODEL, time_limit=seconds)
        with shown("train", evaluations.live) as bar:
            ended = client.wait(job, bar.job)
        version = client.model_of(ended)
        ref = f"{version.model}@{version.version}"
        story.tell(evaluations.trained(version, client.models_evaluation(ref)))
    story.facts |= {"algorithm": version.lineage["algorithm"], "metrics": version.metrics}
    return version


def _package(story: Story, version: ModelVersion) -> tuple[Manifest, bytes]:
    with story.step("Open the sealed package: every file's digest is checked first"):
        key = f"default/packages/{version.digest}"
        package = open_package(LocalBlobs(story.home / "blobs").get(key), version.digest)
        files = package.manifest.files
        for name, entry in files.items():
            if "/" not in name:
                story.tell(f"   {name:<16} {tables.size(entry.size):>9}  {entry.sha256[:16]}")
        sketches = [entry.size for name, entry in files.items() if "/" in name]
        story.tell(f"   {len(sketches)} sketches     {tables.size(sum(sketches)):>9}")
    return package.manifest, package.files["parity.msgpack"]


def _three_wires(story: Story, client: Client, truth: wires.Recorded, manifest: Manifest) -> None:
    with story.step(f"Ask {len(truth.rows)} rows over three wires, compare with the trainer's own"):
        asked = {
            "tapster predict": wires.by_command(story.home, ENDPOINT, truth.rows),
            "Open Inference v2": wires.by_open_inference(client, ENDPOINT, truth.rows),
            "TF Serving v1": wires.by_tf_serving(client, ENDPOINT, truth.rows),
        }
        for wire, answers in asked.items():
            worst = wires.check(answers, truth, manifest, wire)
            story.tell(f"   {wire:<18} same answers (probabilities within {worst:.1e})")
            story.facts.setdefault("largest_difference", {})[wire] = worst
    story.facts["rows_checked"] = len(truth.rows)


def _speed(
    story: Story, client: Client, manifest: Manifest, source: Any, row: dict[str, float]
) -> None:
    with story.step("Race it against scikit-learn of the same family, pickled, behind FastAPI"):
        pickled = story.home / "peer.pickle"
        table, target = source
        peer.refit(manifest.lineage.algorithm, table, target, pickled)
        body, url = {"rows": [row]}, f"{client.rest_url}/v1/endpoints/{ENDPOINT}/predict"
        with peer.running(pickled) as rival:
            ours, theirs = peer.Caller(url, body, client.address.key), peer.Caller(rival, body)
            mine, other = peer.race(ours, theirs, CALLS)
            ours.close()
            theirs.close()
        story.tell(
            f"   median of {CALLS} calls, one row, one connection: Tapster {mine * 1e3:.2f} ms, "
            f"FastAPI + pickle {other * 1e3:.2f} ms: {other / mine:.1f} times faster"
        )
    story.facts |= {"tapster_ms": mine * 1e3, "fastapi_ms": other * 1e3, "faster": other / mine}


def _closing(story: Story, home: Path | None) -> None:
    story.tell(f"\nDone in {story.facts['seconds']} s; every answer was the trained model's own.")
    story.tell(tables.table(["STEP", "SECONDS"], ([s["step"], s["seconds"]] for s in story.steps)))
    start = f"tapster up --home {home}" if home else "tapster up"
    story.tell(
        f"Go on with your own data:\n"
        f"  {start}\n"
        f"  tapster data add mine mine.csv\n"
        f"  tapster train mine --target COLUMN --model my-model --follow\n"
        f"  tapster deploy my-model\n"
        f"  tapster predict my-model --file rows.csv\n"
        f'  curl -H "Authorization: Bearer $(cat ~/.tapster/admin.key)" \\\n'
        f'    -d \'{{"rows": [{{"column": 1.5}}]}}\' \\\n'
        f"    http://127.0.0.1:8501/v1/endpoints/my-model/predict"
    )
