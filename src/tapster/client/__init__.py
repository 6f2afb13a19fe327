"""The Python SDK: one method a verb, over the control API and the plain inference wire.

It knows the contract and HTTP, nothing else of Tapster. Every refusal is a TapsterError.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tapster.client.audit import AuditVerbs
from tapster.client.bills import BillVerbs
from tapster.client.calling import Answer, listed
from tapster.client.endpoints import EndpointVerbs
from tapster.client.entering import EnteringVerbs
from tapster.client.erasing import ErasureVerbs
from tapster.client.folders import model_files
from tapster.client.keys import KeyVerbs
from tapster.client.limits import LimitVerbs
from tapster.client.local import LocalServer, settled
from tapster.client.payloads import PayloadVerbs
from tapster.client.people import PeopleVerbs
from tapster.client.rekeying import RekeyVerbs
from tapster.client.saving import save
from tapster.client.transport import (
    Address,
    home_folder,
    locate,
    no_server,
    on_home,
    spell,
)
from tapster.client.uploads import SendProgress, absolute, collect, is_url, send
from tapster.client.waiting import JobProgress, finish
from tapster.contract.control import (
    DatasetVersion,
    Job,
    ModelVersion,
    Split,
)


def connect(
    url: str | None = None,
    *,
    key: str | None = None,
    home: str | Path | None = None,
    start: bool = True,
) -> "Client":
    """A client of a running server: at `url`, on `home`, or named by `$TAPSTER_URL`.

    Without any of them it is the one on `$TAPSTER_HOME`, else `~/.tapster`. When none runs and
    `start` is true, a server is started on free loopback ports; closing the client stops it.
    Raises TapsterError(unavailable) when no server answers.
    """
    folder = home_folder(home)
    address = on_home(folder, key or "") if home and not url else locate(url, key, folder)
    if address is not None and not address.key and address.rest_url:
        address = settled(folder) or address
    if address is not None:
        return Client(address)
    if not start:
        raise no_server("http://127.0.0.1:8000")
    server = LocalServer(folder)
    try:
        return Client(server.wait_ready(), server)
    except BaseException:
        server.stop()
        raise


class Client(
    EndpointVerbs,
    PayloadVerbs,
    LimitVerbs,
    AuditVerbs,
    BillVerbs,
    PeopleVerbs,
    KeyVerbs,
    EnteringVerbs,
    ErasureVerbs,
    RekeyVerbs,
):
    """One method a verb. Use as a context manager, or call `close`.

    References are NAME or NAME@VERSION; for models also NAME:ALIAS.
    """

    def __init__(self, address: Address, server: LocalServer | None = None) -> None:
        super().__init__(address)
        self._server = server

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and stop the server if this client started it."""
        self._transport.close()
        if self._server is not None:
            self._server.stop()

    # -- the installation

    def resources(self) -> Answer:
        """Processors, memory, disk and job slots: what there is and what is in use."""
        return self._call(Answer, "GET", "/resources")

    # -- datasets

    def data_add(
        self,
        name: str,
        source: Any,
        *,
        table: str = "",
        query: str = "",
        schema: dict[str, str] | None = None,
        format: str = "",
        infinities: str = "",
        on_send: SendProgress | None = None,
        on_progress: JobProgress | None = None,
    ) -> DatasetVersion:
        """Import a file, a folder of files, a URL, or a pandas or polars frame; wait for it.

        `schema` overrides inferred types: {"column": "type"}. `table` or `query` say what to
        read from a database URL; `infinities` is refuse or missing. The same content again gives
        the version that is there already.
        """
        body: dict[str, Any] = {"name": name}
        if is_url(source):
            body["url"] = absolute(source)
        else:
            body["upload"] = send(self._transport, collect(source), on_send)
        given = {"table": table, "query": query, "schema": schema, "format": format}
        given |= {"infinities": infinities}
        body |= {part: value for part, value in given.items() if value}
        return self._dataset_of(self._call(Job, "POST", "/datasets", body), on_progress)

    def data_list(self) -> list[DatasetVersion]:
        """The newest version of each dataset."""
        return self._call(list[DatasetVersion], "GET", "/datasets")

    def data_show(self, ref: str) -> DatasetVersion:
        """One version."""
        return self._call(DatasetVersion, "GET", f"/datasets/{spell(ref)}")

    def data_versions(self, ref: str) -> list[DatasetVersion]:
        """All versions of a dataset."""
        return self._call(list[DatasetVersion], "GET", f"/datasets/{spell(ref)}/versions")

    def data_profile(self, ref: str, target: str = "") -> Answer:
        """Types, missing, quantiles, histograms, warnings; with `target`, associations too."""
        params = {"target": target} if target else None
        return self._call(Answer, "GET", f"/datasets/{spell(ref)}/profile", params=params)

    def data_lineage(self, ref: str) -> Answer:
        """What a version was made from, and what was made from it."""
        return self._call(Answer, "GET", f"/datasets/{spell(ref)}/lineage")

    def data_clean(
        self, ref: str, recipe: dict[str, Any], *, on_progress: JobProgress | None = None
    ) -> DatasetVersion:
        """Apply a recipe of cleaning and transform steps; wait for the new version."""
        job = self._call(Job, "POST", f"/datasets/{spell(ref)}/clean", {"recipe": recipe})
        return self._dataset_of(job, on_progress)

    def data_split(
        self,
        ref: str,
        name: str = "default",
        *,
        kind: str = "random",
        fractions: list[float] | None = None,
        seed: int = 0,
        column: str = "",
        on_progress: JobProgress | None = None,
    ) -> Split:
        """Divide rows into train, validation and test, and record how. Waits.

        `kind` is random, stratified, time or group; the last three need `column`.
        """
        body = {"name": name, "kind": kind, "seed": seed, "column": column}
        body |= {"fractions": fractions} if fractions else {}
        job = self._call(Job, "POST", f"/datasets/{spell(ref)}/split", body)
        self.wait(job, on_progress)
        return next(split for split in self.data_splits(ref) if split.name == name)

    def data_splits(self, ref: str) -> list[Split]:
        """The recorded splits of a version."""
        return self._call(list[Split], "GET", f"/datasets/{spell(ref)}/splits")

    def data_delete(self, ref: str) -> Answer:
        """Delete a dataset or one version of it; {"freed": bytes}."""
        return self._call(Answer, "DELETE", f"/datasets/{spell(ref)}")

    # -- training and jobs

    def train(self, dataset: str, target: str, model: str, **options: Any) -> Job:
        """Start training and return its job at once; see `wait`.

        `options`: task, algorithm, search, trials, cv, metric, time_limit (seconds), recipe,
        split, seed, priority, device. Those not given have the server's defaults.
        """
        given = {name: value for name, value in options.items() if value is not None}
        body = {"dataset": dataset, "target": target, "model": model, **given}
        return self._call(Job, "POST", "/training", body)

    def algorithms(self) -> list[Answer]:
        """What `train(algorithm=...)` can be, and for which tasks."""
        return list(self._call(Answer, "GET", "/training/algorithms")["algorithms"])

    def jobs(self, status: str = "", limit: int = 0) -> list[Job]:
        """Jobs, newest first."""
        params = {"status": status, "limit": limit}
        params = {name: value for name, value in params.items() if value}
        return self._call(list[Job], "GET", "/jobs", params=params)

    def job(self, job_id: str) -> Job:
        """One job."""
        return self._call(Job, "GET", f"/jobs/{spell(job_id)}")

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; it ends within two seconds."""
        return self._call(Job, "POST", f"/jobs/{spell(job_id)}/cancel")

    def logs(self, job_id: str, follow: bool = False) -> Iterator[str]:
        """A job's log, piece by piece; with `follow`, until the job ends."""
        params = {"follow": "true"} if follow else None
        path = f"/jobs/{spell(job_id)}/logs"
        with self._transport.stream(path, params=params, timeout=3600.0) as response:
            yield from response.iter_text()

    def wait(self, job: Job | str, on_progress: JobProgress | None = None) -> Job:
        """The finished job. `on_progress` sees each change. A restart of the server is survived.

        Raises the job's own TapsterError if it failed, TapsterError(cancelled) if cancelled.
        """
        job_id = job if isinstance(job, str) else job.id
        return finish(self._transport, job_id, on_progress)

    # -- models

    def models_list(self, dataset: str = "") -> list[ModelVersion]:
        """The newest version of each model, those that others share included; with `dataset`,
        every own version trained on it."""
        params = {"dataset": dataset} if dataset else None
        return self._call(list[ModelVersion], "GET", "/models", params=params)

    def models_show(self, ref: str) -> ModelVersion:
        """One version."""
        return self._call(ModelVersion, "GET", f"/models/{spell(ref)}")

    def models_versions(self, ref: str) -> list[ModelVersion]:
        """All versions of a model, with their metrics."""
        return self._call(list[ModelVersion], "GET", f"/models/{spell(ref)}/versions")

    def models_evaluation(self, ref: str) -> Answer:
        """Held-out metrics with intervals, confusion matrix, curves, leaderboard."""
        return self._call(Answer, "GET", f"/models/{spell(ref)}/evaluation")

    def models_lineage(self, ref: str) -> Answer:
        """Which data made this model, and what came of it."""
        return self._call(Answer, "GET", f"/models/{spell(ref)}/lineage")

    def models_update(
        self, ref: str, *, description: str | None = None, tags: dict[str, str] | None = None
    ) -> ModelVersion:
        """Describe or tag a version."""
        given = {"description": description, "tags": tags}
        body = {name: value for name, value in given.items() if value is not None}
        return self._call(ModelVersion, "PATCH", f"/models/{spell(ref)}", body)

    def models_alias(self, ref: str, alias: str) -> Answer:
        """Point an alias at a version."""
        return self._call(Answer, "PUT", f"/models/{spell(ref)}/aliases/{spell(alias)}")

    def models_unalias(self, name: str, alias: str) -> Answer:
        """Remove an alias."""
        return self._call(Answer, "DELETE", f"/models/{spell(name)}/aliases/{spell(alias)}")

    def models_import(
        self,
        name: str,
        path: str | Path,
        *,
        on_send: SendProgress | None = None,
        on_progress: JobProgress | None = None,
    ) -> ModelVersion:
        """Register a package or a model that is none yet; wait for the version.

        `path`: an exported package, an ONNX, .skops or .pt2 file, or a model's folder.
        """
        upload = send(self._transport, model_files(path), on_send)
        job = self._call(Job, "POST", f"/models/{spell(name)}/import", {"upload": upload})
        return self.model_of(self.wait(job, on_progress))

    def models_export(self, ref: str, path: str | Path) -> Path:
        """Write a version to one file, complete or not at all."""
        with self._transport.stream(f"/models/{spell(ref)}/export") as response:
            return save(path, response.iter_bytes())

    def models_share(
        self, name: str, tenants: Sequence[str] = (), *, everybody: bool = False
    ) -> ModelVersion:
        """Let other tenants, or everybody, deploy every version of a model at endpoints of their
        own, at their expense; its newest version."""
        body = {"tenants": listed(tenants), "all": everybody}
        return self._call(ModelVersion, "POST", f"/models/{spell(name)}/share", body)

    def models_withdraw(
        self, name: str, tenants: Sequence[str] = (), *, everybody: bool = False
    ) -> ModelVersion:
        """Let these tenants use a model no longer, or with `everybody`, as without any, nobody
        else: endpoints that serve it stop answering."""
        body = {"tenants": listed(tenants), "all": everybody}
        return self._call(ModelVersion, "POST", f"/models/{spell(name)}/withdraw", body)

    def models_delete(self, ref: str) -> Answer:
        """Delete a model or one version of it; {"freed": bytes}."""
        return self._call(Answer, "DELETE", f"/models/{spell(ref)}")

    def model_of(self, job: Job) -> ModelVersion:
        """The version that a finished training or import made."""
        result = job.result or {}
        return self.models_show(f"{result['model']}@{result['version']}")

    def trust_list(self) -> list[dict[str, Any]]:
        """Keys whose packages may be imported."""
        return self._call(list[dict[str, Any]], "GET", "/trust")

    def trust_add(self, name: str, public_key: str) -> Answer:
        """Trust a key's packages."""
        return self._call(Answer, "POST", "/trust", {"name": name, "public_key": public_key})

    def trust_remove(self, name: str) -> Answer:
        """Trust a key no longer."""
        return self._call(Answer, "DELETE", f"/trust/{spell(name)}")

    # -- plumbing

    def _dataset_of(self, job: Job, on_progress: JobProgress | None) -> DatasetVersion:
        result = self.wait(job, on_progress).result or {}
        return self.data_show(f"{result['dataset']}@{result['version']}")
