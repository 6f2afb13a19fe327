"""Fitted scikit-learn estimators from skops files: what they say of themselves, and trust."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from skops.io import dumps

from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Column, Manifest, Signature, TensorSpec, Tolerance
from tapster.runtimes.isolated import Limits
from tapster.runtimes.isolated.model import Isolated
from tapster.runtimes.skops import SkopsModel, SkopsRuntime, open_estimator

X: Any = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
LABELS = np.where(X[:, 0] > 0, "yes", "no")
FILE = "model.skops"


def test_an_estimator_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    (tmp_path / FILE).write_bytes(dumps(fitted))
    with Isolated.of_draft(tmp_path, "skops", FILE, Limits()) as model:
        assert model.signature == Signature(
            inputs=(TensorSpec("numeric", "FP32", (-1, 3)),),
            outputs=(
                TensorSpec("prediction", "BYTES", (-1,)),
                TensorSpec("probabilities", "FP32", (-1, 2)),
            ),
            classes=("no", "yes"),
        )
        for rows in (X, X[:1], X[:0]):
            if len(rows):
                labels, scores = model.run({"numeric": rows})
                assert labels.tolist() == fitted.predict(rows).tolist()
                np.testing.assert_allclose(scores, fitted.predict_proba(rows), atol=1e-6)
        with pytest.raises(TapsterError) as caught:
            model.run({"numeric": X[:0]})
        assert caught.value.code == "invalid"
        assert "0 sample(s)" in caught.value.message


def loaded(estimator: Any) -> SkopsModel:
    files = {FILE: dumps(estimator)}
    runtime = SkopsRuntime()
    signature = runtime.describe(files, FILE).signature
    manifest = Manifest("m", "other", "skops", FILE, signature, Tolerance(0, 0), {})
    return runtime.load(manifest, files, 1)


@pytest.mark.parametrize(
    ("estimator", "target", "outputs", "classes"),
    [
        (RandomForestRegressor(5), X[:, 0], {"prediction": ("FP32", ())}, ()),
        (LinearRegression(), X[:, :2], {"prediction": ("FP32", (2,))}, ()),
        (
            HistGradientBoostingClassifier(max_iter=5),
            np.arange(60) % 3,
            {"prediction": ("INT64", ()), "probabilities": ("FP32", (3,))},
            (0, 1, 2),
        ),
        (
            KNeighborsClassifier(algorithm="kd_tree"),
            X[:, 0] > 0,
            {"prediction": ("BOOL", ()), "probabilities": ("FP32", (2,))},
            (False, True),
        ),
        (KMeans(2, n_init=1), None, {"prediction": ("INT64", ())}, ()),
        (StandardScaler(), None, {"prediction": ("FP32", (3,))}, ()),
    ],
)
def test_estimators_know_what_they_give(
    estimator: Any, target: Any, outputs: dict[str, Any], classes: tuple[Any, ...]
) -> None:
    fitted = estimator.fit(X, target)
    model = loaded(fitted)
    found = {spec.name: (spec.datatype, spec.shape[1:]) for spec in model.signature.outputs}
    assert (found, model.signature.classes) == (outputs, classes)
    method = fitted.predict if hasattr(fitted, "predict") else fitted.transform
    given = dict(zip(found, model.run({"numeric": X}), strict=True))
    np.testing.assert_allclose(given["prediction"], method(X), rtol=1e-5)
    if "probabilities" in found:
        (alone,) = model.run({"numeric": X}, ["probabilities"])
        np.testing.assert_allclose(alone, fitted.predict_proba(X), rtol=1e-5)


def test_a_pipeline_fitted_on_a_frame_gets_a_frame() -> None:
    draw = np.random.default_rng(1)
    plans, cities = draw.choice(["a", "b"], 60), draw.choice(["x", "y", "z"], 60)
    frame = pd.DataFrame({"age": X[:, 0], "plan": plans, "size": X[:, 1], "city": cities})
    text = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    split = make_column_transformer((StandardScaler(), ["age", "size"]), (text, ["plan", "city"]))
    fitted = make_pipeline(split, LogisticRegression()).fit(frame, LABELS)
    model = loaded(fitted)
    assert model.signature.columns == (
        Column("age", "number", "numeric", 0),
        Column("plan", "text", "text", 0),
        Column("size", "number", "numeric", 1),
        Column("city", "text", "text", 1),
    )
    words = np.stack([plans, cities], axis=1).astype(np.object_)
    labels, scores = model.run({"numeric": X[:, :2], "text": words})
    assert labels.tolist() == fitted.predict(frame).tolist()
    np.testing.assert_allclose(scores, fitted.predict_proba(frame), atol=1e-6)


def test_a_declaration_is_believed_before_the_estimator() -> None:
    declared = (
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}],'
        b'"outputs": [{"name": "prediction", "datatype": "BYTES", "shape": [-1]}]}'
    )
    files = {FILE: dumps(LogisticRegression().fit(X, LABELS)), "model.json": declared}
    signature = SkopsRuntime().describe(files, FILE).signature
    assert [spec.name for spec in signature.inputs] == ["features"]


# -- trust


def ran(x: Any) -> Any:
    Path("canary-was-here").touch()
    return x


def evil() -> bytes:
    """A pipeline that would call a function of ours."""
    return bytes(dumps(make_pipeline(FunctionTransformer(ran), LinearRegression()).fit(X, X[:, 0])))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = evil()  # fitting calls it
    Path("canary-was-here").unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_bytes(made)
    return tmp_path


def test_types_that_are_not_trusted_are_named_and_not_made(elsewhere: Path) -> None:
    with pytest.raises(TapsterError) as caught:
        open_estimator((elsewhere / FILE).read_bytes())
    assert caught.value.code == "forbidden"
    assert "tests.runtimes.test_skops.ran" in caught.value.message
    assert "TAPSTER_SKOPS_TRUSTED" in caught.value.hint
    assert not (elsewhere / "canary-was-here").exists()


def test_the_operator_may_trust_more(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPSTER_SKOPS_TRUSTED", "a.b, tests.runtimes.test_skops.ran")
    assert hasattr(open_estimator((elsewhere / FILE).read_bytes()), "predict")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "sklearn.datasets.fetch_openml",
        "sklearn.utils._testing.assert_run_python_script_without_output",
        "sklearn.externals._packaging.version.Version",
        "sklearn.utils.estimator_html_repr",
        "sklearn.no_such_thing.X",
        "sklearnx.Tree",
    ],
)
def test_what_is_no_class_of_scikit_learn_is_not_trusted(name: str) -> None:
    from tapster.runtimes.skops import _trusted

    assert not _trusted(name)
    assert _trusted("sklearn.tree._tree.Tree")


def zipped(**files: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("_", "."), text)
    return made.getvalue()


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", zipped(), zipped(schema_json="{"), zipped(schema_json="{}")]
)
def test_what_is_no_skops_file_is_refused(data: bytes) -> None:
    with pytest.raises(TapsterError) as caught:
        open_estimator(data)
    assert caught.value.code == "unprocessable"
