"""What is made of an ONNX graph before it is written, against ONNX Runtime; jax2onnx itself is stood in for."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import hourglass_jax as hj
from hourglass_jax.export import Export, write_onnx
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.ops.targets import attention_form


@pytest.fixture
def constant(tiny_model: Saliency, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """jax2onnx that writes a graph whose output is one number everywhere, and a model that says the same number."""
    settings = {"written": 0.5}

    def to_onnx(function, inputs, model_name) -> onnx.ModelProto:
        assert attention_form.value == "xla"
        shape = list(inputs[0].shape)
        mean = helper.make_node("ReduceMean", ["in_0", "axes"], ["mean"], keepdims=0)
        zero = helper.make_node("Mul", ["mean", "zero"], ["nothing"])
        added = helper.make_node("Add", ["nothing", "value"], ["out_0"])
        initializers = [
            helper.make_tensor("axes", TensorProto.INT64, [1], [3]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("value", TensorProto.FLOAT, [], [settings["written"]]),
        ]
        graph = helper.make_graph(
            [mean, zero, added],
            model_name,
            [helper.make_tensor_value_info("in_0", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("out_0", TensorProto.FLOAT, shape[:3])],
            initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=to_onnx))
    monkeypatch.setattr(Saliency, "__call__", lambda self, images: images[..., 0] * 0 + 0.5)
    return settings


def test_a_graph_is_named_described_and_written(constant: dict[str, float], tiny_model: Saliency, tmp_path) -> None:
    file = tmp_path / "model.onnx"
    described = write_onnx(Export(hj.expedite(tiny_model, hj.StagedMerging(0.8)), (70, 70)), file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [found] = session.run(["saliency"], {"images": np.ones((1, 70, 70, 3), np.float32)})
    np.testing.assert_array_equal(found, np.full((1, 70, 70), 0.5, np.float32))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["model"] == described["model"] == "saliency"
    assert json.loads(metadata["plan"]) == described["plan"]


def test_a_graph_that_computes_something_else_is_not_written(
    constant: dict[str, float], tiny_model: Saliency, tmp_path: Path
) -> None:
    constant["written"] = 0.501
    with pytest.raises(ValueError, match=r"output 'saliency' differs from JAX's by 2.0e-03 .* nothing was written"):
        write_onnx(Export(tiny_model, (70, 70)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
