"""Writing ONNX graphs by hand and splicing converted estimators into them."""

from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapster.contract.inference import Array

OPSET: Final = 18
ML_OPSET: Final = 3
ML: Final = "ai.onnx.ml"


class GraphWriter:
    """Nodes and constants in order. Names are counted, so that equal models give equal bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._opsets: dict[str, int] = {"": OPSET, ML: ML_OPSET}
        self._count = 0

    def name(self, stem: str) -> str:
        """A name nothing else in the graph has."""
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, name: str, width: int, text: bool) -> str:
        """Declare a graph input [batch, width] of strings or float32."""
        kind = TensorProto.STRING if text else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", width]))
        return name

    def constant(self, value: Array | list[str]) -> str:
        """Add an initializer: a numeric array, or a list of strings."""
        name = self.name("constant")
        if isinstance(value, list):
            encoded: Any = [text.encode() for text in value]
            tensor = helper.make_tensor(name, TensorProto.STRING, [len(value)], encoded)
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.constants.append(tensor)
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        output = self.name(operator.lower())
        self._append(operator, inputs, [output], domain, attributes)
        return output

    def add_many(
        self, operator: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        names = [self.name(operator.lower()) for _ in range(outputs)]
        self._append(operator, inputs, names, domain, attributes)
        return names

    def rename(self, source: str, target: str) -> None:
        """Make a tensor available under a fixed name."""
        self.nodes.append(helper.make_node("Identity", [source], [target], name=self.name("n")))

    def splice(self, model: onnx.ModelProto, source: str) -> list[str]:
        """Insert another model that has one input, fed by `source`; returns its outputs' names."""
        from onnx import compose

        prefix = self.name("part") + "/"
        for opset in model.opset_import:
            known = self._opsets.get(opset.domain, 0)
            self._opsets[opset.domain] = max(known, opset.version)
        graph = compose.add_prefix_graph(model.graph, prefix)
        entry = graph.input[0].name
        for index, node in enumerate(graph.node):
            node.name = f"{prefix}{index}"
            node.input[:] = [source if name == entry else name for name in node.input]
            self.nodes.append(node)
        self.constants.extend(graph.initializer)
        return [output.name for output in graph.output]

    def build(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The checked model, without nodes and constants that no output needs."""
        nodes, constants = self._needed({output.name for output in outputs})
        graph = helper.make_graph(nodes, "tapster", self.inputs, outputs, constants)
        used = {node.domain for node in nodes} | {""}
        opsets = [helper.make_opsetid(d, v) for d, v in sorted(self._opsets.items()) if d in used]
        model = helper.make_model(
            graph, opset_imports=opsets, producer_name="tapster", ir_version=8
        )
        onnx.checker.check_model(model)
        return model

    def _append(
        self,
        operator: str,
        inputs: tuple[str, ...],
        outputs: list[str],
        domain: str,
        attributes: dict[str, Any],
    ) -> None:
        node = helper.make_node(
            operator, list(inputs), outputs, name=self.name("n"), domain=domain, **attributes
        )
        self.nodes.append(node)

    def _needed(self, wanted: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        return kept[::-1], [tensor for tensor in self.constants if tensor.name in wanted]
