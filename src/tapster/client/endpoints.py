"""The verbs over endpoints: deploy, share, mirror, roll out, roll back, ask."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tapster.client.calling import Answer, Caller, listed
from tapster.client.transport import spell
from tapster.client.values import from_frame, further
from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError

POLL_SECONDS: Final = 20
ROLLOUT_SECONDS: Final = 0.5
PATIENCE: Final = 30.0
ROWS_A_REQUEST: Final = 2000


class EndpointVerbs(Caller):
    """See Client."""

    def deploy(
        self,
        model: str,
        endpoint: str = "",
        *,
        weight: float | None = None,
        shadow: bool = False,
        canary: Sequence[float] | dict[str, Any] | None = None,
        wait: bool = True,
    ) -> Endpoint:
        """Serve a version at an endpoint (named as the model by default).

        `weight`: its percentage of the requests, beside what serves, which keeps its proportions
        of the rest; 100, the default, replaces everything. `shadow`: it gets copies of requests
        and answers nobody. `canary`: its percentage grows in these steps, such as
        [5, 25, 50, 100], while it proves no worse than what it replaces; as a dictionary also
        `interval` (seconds), `min_requests`, `max_error_rate` and `max_latency_ratio`.

        With `wait`, returns once traffic has switched, of a canary to its first step. Raises
        TapsterError with the reason when the version is refused; what was served before is served
        on.
        """
        name = endpoint or model.partition("@")[0].partition(":")[0]
        body: dict[str, Any] = {"model": model}
        if weight is not None:
            body["weight"] = weight
        if shadow:
            body["shadow"] = True
        if canary is not None:
            body["canary"] = canary if isinstance(canary, dict) else {"steps": list(canary)}
        return self._deployed(name, body, wait)

    def deploy_ensemble(
        self, members: dict[str, float], endpoint: str, *, wait: bool = True
    ) -> Endpoint:
        """Serve the weighted mean of versions: {"A@1": 0.6, "B@2": 0.4}. See `deploy`."""
        return self._deployed(endpoint, {"ensemble": members}, wait)

    def rollback(self, endpoint: str, *, wait: bool = True) -> Endpoint:
        """Serve what an endpoint served before; a canary that is under way ends at once."""
        started = self._call(Endpoint, "POST", f"/endpoints/{spell(endpoint)}/rollback")
        return self._settled(endpoint) if wait else started

    def endpoints(self) -> list[Endpoint]:
        """All endpoints."""
        return self._call(list[Endpoint], "GET", "/endpoints")

    def endpoint(self, name: str, wait: int = 0) -> Endpoint:
        """One endpoint; with `wait`, after it is no longer loading or that many seconds."""
        params = {"wait": wait} if wait else None
        return self._call(Endpoint, "GET", f"/endpoints/{spell(name)}", params=params)

    def endpoint_set(
        self,
        name: str,
        *,
        options: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        shadows: Sequence[str] | None = None,
        wait: bool = True,
    ) -> Endpoint:
        """Change an endpoint.

        `options`: deadline, window, cache and idle (seconds), queue, concurrency, memory (bytes);
        None gives an option its default back. `weights`: exactly the versions that are to answer,
        and their percentages (factors of an ensemble). `shadows`: exactly those that are to get
        copies. With `wait`, returns once traffic has switched.
        """
        given = {"options": options, "weights": weights, "shadows": shadows}
        body = {part: value for part, value in given.items() if value is not None}
        changed = self._call(Endpoint, "PATCH", f"/endpoints/{spell(name)}", body)
        return self._settled(name) if wait and changed.status == "loading" else changed

    def rollout(self, name: str, on_change: Callable[[Endpoint], None] | None = None) -> Endpoint:
        """The endpoint once its canary is promoted; `on_change` sees it twice a second.

        Raises TapsterError with the reason when the canary was rolled back. An outage of the
        control plane of half a minute is survived.
        """
        while True:
            seen = self._patiently(name)
            if on_change is not None:
                on_change(seen)
            rollout = seen.rollout
            if rollout is None or rollout["state"] != "running":
                break
            time.sleep(ROLLOUT_SECONDS)
        settled = self._settled(name)
        if rollout is not None and rollout["state"] == "aborted":
            raise TapsterError("cancelled", f"the rollout ended: {rollout['reason']}")
        return settled

    def endpoint_share(
        self, name: str, tenants: Sequence[str] = (), *, everybody: bool = False
    ) -> Endpoint:
        """Let other tenants call an endpoint by its name, or everybody; with their own keys, at
        their expense."""
        body = {"tenants": listed(tenants), "all": everybody}
        return self._call(Endpoint, "POST", f"/endpoints/{spell(name)}/share", body)

    def endpoint_withdraw(
        self, name: str, tenants: Sequence[str] = (), *, everybody: bool = False
    ) -> Endpoint:
        """Let tenants call an endpoint no longer: these, or what `everybody` may, or without both
        whoever may."""
        body = {"tenants": listed(tenants), "all": everybody}
        return self._call(Endpoint, "POST", f"/endpoints/{spell(name)}/withdraw", body)

    def endpoint_delete(self, name: str) -> Answer:
        """Stop serving at a name."""
        return self._call(Answer, "DELETE", f"/endpoints/{spell(name)}")

    def signature(self, endpoint: str) -> Answer:
        """Columns, inputs and outputs of what an endpoint serves: for whoever may ask it."""
        path = f"/v2/models/{spell(endpoint)}"
        found = self._transport.call(Answer, "GET", path, at=self.rest_url)
        parameters = found.get("parameters", {})
        columns = [
            {"tensor" if name == "input" else name: value for name, value in each.items()}
            for each in parameters.get("columns", [])
        ]
        classes = parameters.get("classes", [])
        parts = {"inputs": found["inputs"], "outputs": found["outputs"]}
        return {**parts, "columns": columns, "classes": classes}

    def predict(self, endpoint: str, rows: Any) -> list[dict[str, Any]]:
        """Predictions for rows: objects of column values, or a pandas or polars frame.

        Each answer is {"prediction": ...} and, for classifiers, {"probabilities": {label: p}}.
        """
        path = f"/v1/endpoints/{spell(endpoint)}/predict"
        asked, answers = from_frame(rows), []
        for start in range(0, max(len(asked), 1), ROWS_A_REQUEST):
            body = {"rows": asked[start : start + ROWS_A_REQUEST]}
            try:
                answer = self._transport.call(Answer, "POST", path, body, at=self.rest_url)
            except TapsterError as error:
                raise further(error, start) from None
            answers += answer["predictions"]
        return answers

    def _deployed(self, name: str, body: dict[str, Any], wait: bool) -> Endpoint:
        started = self._call(Endpoint, "POST", f"/endpoints/{spell(name)}/deploy", body)
        return self._settled(name) if wait else started

    def _settled(self, name: str) -> Endpoint:
        while (seen := self.endpoint(name, wait=POLL_SECONDS)).status == "loading":
            pass
        if seen.error:
            raise TapsterError.from_dict(seen.error)
        return seen

    def _patiently(self, name: str) -> Endpoint:
        """The endpoint, across a restart of the control plane."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.endpoint(name)
            except TapsterError as error:
                if error.code not in {"unavailable", "deadline"} or time.monotonic() > until:
                    raise
            time.sleep(ROLLOUT_SECONDS)
