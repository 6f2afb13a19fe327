"""Recording answers and holding a model to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tapster.contract.errors import TapsterError
from tapster.contract.inference import Array
from tapster.contract.manifest import Manifest, Tolerance
from tapster.runtimes import parity
from tapster.runtimes.onnx import OnnxModel, OnnxRuntime
from tapster.runtimes.parity import Vector, compare
from tests.runtimes.graphs import SIGNATURE, TOLERANCE, WEIGHTS, answers, classifier, sample

EXACT = Tolerance(0.0, 0.0)


def load(weights: Array = WEIGHTS) -> OnnxModel:
    manifest = Manifest("m", "binary", "onnx", "model.onnx", SIGNATURE, TOLERANCE, {})
    return OnnxRuntime().load(manifest, {"model.onnx": classifier(weights)}, 1)


dtypes = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u2", "u8", "?"]).map(np.dtype)
tensors = st.one_of(
    hnp.arrays(dtypes, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)),
    st.lists(st.text(max_size=8), max_size=5).map(lambda words: np.array(words, dtype=np.object_)),
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=10), tensors, min_size=1, max_size=3))
def test_what_is_recorded_comes_back_bit_by_bit(given_tensors: dict[str, Array]) -> None:
    data = parity.record_batches([Vector(given_tensors, given_tensors, independent=False)])
    (vector,) = parity.load(data)
    assert not vector.independent
    for name, array in given_tensors.items():
        for back in (vector.inputs[name], vector.outputs[name]):
            assert back.dtype == array.dtype
            assert back.shape == array.shape
            if array.dtype == np.object_:
                assert back.tolist() == array.tolist()
            else:
                assert back.tobytes() == array.tobytes()


def test_rows_are_cut_into_batches() -> None:
    rows = sample(10)
    vectors = parity.load(parity.record({"numeric": rows}, answers(rows), sizes=(1, 2, 3)))
    assert [len(vector.inputs["numeric"]) for vector in vectors] == [1, 2, 3, 4]
    assert np.concatenate([v.inputs["numeric"] for v in vectors]).tobytes() == rows.tobytes()
    few = parity.load(parity.record({"numeric": rows[:2]}, answers(rows[:2]), sizes=(1, 2, 3)))
    assert [len(vector.inputs["numeric"]) for vector in few] == [1, 1]


def test_a_model_reproduces_its_own_vectors() -> None:
    rows = sample(40)
    data = parity.record({"numeric": rows}, answers(rows), sizes=(1, 2, 17))
    assert parity.replay(load(), data, TOLERANCE) == 40


def test_another_model_is_refused_with_the_offending_rows() -> None:
    rows = sample(20)
    data = parity.record({"numeric": rows}, answers(rows), sizes=(1, 2))
    with pytest.raises(TapsterError) as caught:
        parity.replay(load(WEIGHTS * np.float32(1.01)), data, TOLERANCE)
    assert caught.value.code == "unprocessable"
    assert "does not reproduce its recorded answers" in caught.value.message
    assert "row 0, probabilities: expected" in caught.value.message


def test_rows_are_numbered_across_batches() -> None:
    rows = sample(9)
    recorded = answers(rows)
    recorded["probabilities"][7] = [0.5, 0.5]
    data = parity.record({"numeric": rows}, recorded, sizes=(1, 2, 3))
    with pytest.raises(TapsterError, match=r"in 1 row: row 7, probabilities: expected 0.5, 0.5"):
        parity.replay(load(), data, TOLERANCE)


def test_a_model_that_answers_by_batch_fails_alone_unless_it_says_so() -> None:
    class Averaging:
        signature = SIGNATURE

        def run(
            self,
            inputs: dict[str, Array],
            outputs: object,
            deadline: float | None = None,
            stop: object = None,
        ) -> list[Array]:
            mean = inputs["numeric"].mean(axis=1) + len(inputs["numeric"])
            return [mean]

        def close(self) -> None:
            return None

    rows = sample(4)
    recorded = {"score": rows.mean(axis=1) + 4}
    dependent = Vector({"numeric": rows}, recorded, independent=False)
    assert parity.replay(Averaging(), parity.record_batches([dependent]), TOLERANCE) == 4
    with pytest.raises(TapsterError, match="score: expected"):
        parity.replay(Averaging(), parity.record({"numeric": rows}, recorded), TOLERANCE)


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x80", parity.record_batches([]), b"\x81\xa7vectors\x91\xc0"]
)
def test_nothing_recorded_is_refused(data: bytes) -> None:
    with pytest.raises(TapsterError) as caught:
        parity.replay(load(), data, TOLERANCE)
    assert caught.value.code == "unprocessable"


def test_a_recorded_input_that_the_model_refuses() -> None:
    rows = sample(2)
    data = parity.record({"other": rows}, answers(rows))
    with pytest.raises(TapsterError, match="refuses a recorded input") as caught:
        parity.replay(load(), data, TOLERANCE)
    assert caught.value.code == "unprocessable"


def scores(*rows: list[float]) -> Array:
    return np.array(rows, dtype=np.float32)


def test_scores_agree_within_the_tolerance() -> None:
    wanted = {"y": np.array([1.0, 100.0, -100.0], dtype=np.float32)}
    got = {"y": np.array([1.02, 100.9, -99.1], dtype=np.float32)}
    assert compare(wanted, got, Tolerance(atol=0.02, rtol=0.01)) == []
    assert [m.row for m in compare(wanted, got, Tolerance(atol=0.0, rtol=0.01))] == [0]
    assert [m.row for m in compare(wanted, got, EXACT)] == [0, 1, 2]


def test_nan_equals_nan_and_infinity_itself() -> None:
    wanted = {"y": np.array([np.nan, np.inf, -np.inf, np.nan, np.inf, 1.0], dtype=np.float32)}
    got = {"y": np.array([np.nan, np.inf, -np.inf, 1.0, -np.inf, np.nan], dtype=np.float32)}
    assert [m.row for m in compare(wanted, got, Tolerance(1e9, 1e9))] == [3, 4, 5]


def test_a_label_may_flip_within_the_margin_only() -> None:
    recorded = {
        "prediction": np.array(["a", "a", "b", "a"], dtype=np.object_),
        "probabilities": scores([0.9, 0.1, 0], [0.5, 0.4995, 0], [0.4, 0.6, 0], [0.5, 0.4999, 0]),
    }
    flipped = {**recorded, "prediction": np.array(["a", "b", "a", "c"], dtype=np.object_)}
    loose = Tolerance(0.0, 0.0, margin=1e-3)
    assert [m.row for m in compare(recorded, flipped, loose)] == [2]
    assert [m.row for m in compare(recorded, flipped, loose, ("a", "b", "c"))] == [2, 3]
    assert [m.row for m in compare(recorded, flipped, EXACT)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        (np.array(["a", "b"], dtype=np.object_), np.array(["a", "c"], dtype=np.object_)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True, True]), np.array([True, False])),
    ],
)
def test_labels_without_scores_must_be_equal(wanted: Array, got: Array) -> None:
    found = compare({"prediction": wanted}, {"prediction": got}, Tolerance(10, 10, 10))
    assert [m.row for m in found] == [1]
    assert compare({"prediction": wanted}, {"prediction": wanted}, EXACT) == []


def test_another_shape_is_a_mismatch() -> None:
    (found,) = compare({"y": np.zeros((2, 3))}, {"y": np.zeros((3, 2))}, Tolerance(1, 1))
    assert (found.expected, found.got) == ("shape [2, 3]", "shape [3, 2]")


def test_an_error_stays_short() -> None:
    wanted = {"y": np.zeros((500, 300), dtype=np.float32)}
    error = parity.mismatch_error(compare(wanted, {"y": wanted["y"] + 1}, EXACT))
    assert "in 500 rows" in error.message
    assert len(error.message) < 500
