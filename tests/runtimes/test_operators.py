"""Which graphs may run in a server's own process."""

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tapster.contract.errors import TapsterError
from tapster.runtimes.operators import vet
from tests.runtimes.graphs import FLOAT, INT, classifier, model, value


def judged(*nodes: NodeProto, last: str = "y", weights: dict[str, np.ndarray] | None = None) -> str:
    """What `vet` says of nodes that lead from x [n, 2] and k [1] to y."""
    inputs = [value("x", FLOAT, ["n", 2]), value("k", INT, [1])]
    made = model(nodes, inputs, [value(last, FLOAT, None)], weights)
    return "; ".join(vet(made.SerializeToString()))


def test_an_ordinary_graph_is_vetted() -> None:
    assert vet(classifier()) == []


@pytest.mark.parametrize("operator", ["RandomNormalLike", "NonZero", "Unique", "Bernoulli", "Nope"])
def test_operators_that_are_not_on_the_list(operator: str) -> None:
    assert "not on the vetted list" in judged(helper.make_node(operator, ["x"], ["y"]))


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("MatMul", "com.example"), ("ZipMap", "ai.onnx.ml"), ("Relu", "ai.onnx.ml")],
)
def test_operators_of_other_domains(operator: str, domain: str) -> None:
    assert "not on the vetted list" in judged(
        helper.make_node(operator, ["x"], ["y"], domain=domain)
    )


def test_contributed_and_ml_operators_are_known() -> None:
    assert judged(helper.make_node("CDist", ["x", "x"], ["y"], domain="com.microsoft")) == ""
    assert judged(helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml")) == ""


def test_loops_and_branches_are_not_vetted() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "b", [], [value("z", FLOAT, None)]
    )
    said = judged(helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body))
    assert "'If' is not on the vetted list" in said
    assert "holds a graph of its own" in said
    hidden = helper.make_node("Relu", ["x"], ["y"])
    hidden.attribute.append(helper.make_attribute("body", body))
    assert "holds a graph of its own" in judged(hidden)


def test_a_shape_may_not_follow_input_values() -> None:
    said = judged(helper.make_node("Expand", ["x", "k"], ["y"]))
    assert "takes the shape of its output from input values" in said
    derived = [
        helper.make_node("Mul", ["k", "k"], ["square"]),
        helper.make_node("ConstantOfShape", ["square"], ["y"]),
    ]
    assert "from input values" in judged(*derived)


def test_the_order_of_nodes_in_the_file_hides_nothing() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["square"], ["y"]),
        helper.make_node("Mul", ["k", "k"], ["square"]),
    ]
    assert "from input values" in judged(*nodes)


def test_a_shape_may_follow_shapes_and_constants() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "s"], ["t"]),
        helper.make_node("ConstantOfShape", ["t"], ["zeros"]),
        helper.make_node("Constant", [], ["c"], value_ints=[2, 1]),
        helper.make_node("Expand", ["zeros", "c"], ["u"]),
        helper.make_node("Reshape", ["u", "w"], ["v"]),
        helper.make_node("Slice", ["v", "w", "w", "", "w"], ["y"]),
    ]
    assert judged(*nodes, weights={"w": np.array([-1], dtype=np.int64)}) == ""


def test_an_initializer_that_a_caller_may_replace_counts_as_an_input() -> None:
    node = helper.make_node("ConstantOfShape", ["k"], ["y"])
    assert "from input values" in judged(node, weights={"k": np.array([1], dtype=np.int64)})


def test_functions_are_not_vetted() -> None:
    made = model(
        [helper.make_node("Twice", ["x"], ["y"], domain="f")],
        [value("x", FLOAT, [1])],
        [value("y", FLOAT, [1])],
    )
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(
        helper.make_function("f", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    )
    assert any("functions" in reason for reason in vet(made.SerializeToString()))


def test_external_data_is_found_however_deep() -> None:
    tensor = numpy_helper.from_array(np.zeros(2, dtype=np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([], "b", [], [value("w", FLOAT, None)], initializer=[tensor])
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    branch = helper.make_node("If", ["k"], ["y"], then_branch=inner, else_branch=inner)
    for node in (constant, branch):
        with pytest.raises(TapsterError, match="external data"):
            judged(node)


def test_two_graphs_in_one_file_are_read_as_onnx_runtime_reads_them() -> None:
    """Protobuf merges a repeated single field: the second graph's nodes count too."""
    second = model([helper.make_node("NonZero", ["x"], ["z"])], [], [])
    assert any("NonZero" in reason for reason in vet(classifier() + second.SerializeToString()))
