"""What the demo measures against: a pickled scikit-learn pipeline behind FastAPI.

`python -m tapster.cli.peer PICKLE DESCRIPTOR` serves it; the rest runs in the demo itself.
"""

import json
import pickle
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

WARM_UP: Final = 30
START_TIMEOUT: Final = 60.0
_LENGTH: Final = b"content-length:"


def refit(algorithm: str, table: Any, target: Any, path: Path) -> None:
    """Fit the usual scikit-learn pipeline around the winner's family of algorithm; pickle it."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [SimpleImputer(strategy="median"), StandardScaler(), _estimator(algorithm)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a default fit has not quite converged, say
        path.write_bytes(pickle.dumps(make_pipeline(*steps).fit(table, target)))


def _estimator(algorithm: str) -> Any:
    """scikit-learn's own, as it comes; both boosting libraries are of its boosting's family."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    families: dict[str, Callable[[], Any]] = {
        "logistic": LogisticRegression,
        "linear-svm": lambda: CalibratedClassifierCV(LinearSVC(), ensemble=False),
        "rbf-svm": lambda: CalibratedClassifierCV(SVC(), ensemble=False),
        "random-forest": RandomForestClassifier,
        "mlp": MLPClassifier,
        "knn": KNeighborsClassifier,
    }
    return families.get(algorithm, HistGradientBoostingClassifier)()


@contextmanager
def running(pickled: Path) -> Iterator[str]:
    """The pipeline behind FastAPI and uvicorn in a process of its own; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "tapster.cli.peer", str(pickled), str(listener.fileno())],
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}/predict"
        finally:
            process.terminate()
            process.wait(START_TIMEOUT)


def serve(pickled: Path, descriptor: int) -> None:
    """The usual few lines around a pickled model."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    model = pickle.loads(pickled.read_bytes())  # noqa: S301 - what this peer is about
    app = FastAPI()

    class Request(BaseModel):
        rows: list[dict[str, float]]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        shares = model.predict_proba([list(row.values()) for row in request.rows])
        best = shares.argmax(axis=1)
        labels = [str(model.classes_[at]) for at in best]
        return {
            "predictions": [
                {
                    "prediction": label,
                    "probabilities": dict(zip(map(str, model.classes_), row, strict=True)),
                }
                for label, row in zip(labels, shares.tolist(), strict=True)
            ]
        }

    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


class Caller:
    """One keep-alive connection that sends one request again and again."""

    def __init__(self, url: str, body: Any, key: str = "") -> None:
        parts = urlsplit(url)
        data = json.dumps(body).encode()
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._request = head.encode() + data
        self._socket = socket.create_connection((parts.hostname, parts.port), START_TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def call(self) -> tuple[float, bytes]:
        """Send, and read the answer: seconds it took, and its body.

        Raises RuntimeError for any status but 200.
        """
        begun = time.perf_counter()
        self._socket.sendall(self._request)
        data = self._socket.recv(1 << 16)
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.split(b"\r\n", 1)[0].decode(errors="replace"))
        lines = head.lower().split(b"\r\n")
        length = next(int(line[len(_LENGTH) :]) for line in lines if line.startswith(_LENGTH))
        while len(body) < length:
            body += self._more()
        return time.perf_counter() - begun, body

    def _more(self) -> bytes:
        more = self._socket.recv(1 << 16)
        if not more:
            raise RuntimeError("the connection was closed")
        return more


def race(ours: Caller, theirs: Caller, calls: int) -> tuple[float, float]:
    """Median seconds of a call to each, asked in turns so that both see the same machine."""
    for _ in range(WARM_UP):
        ours.call()
        theirs.call()
    times = [(ours.call()[0], theirs.call()[0]) for _ in range(calls)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
