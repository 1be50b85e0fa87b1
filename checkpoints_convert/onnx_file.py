"""The weights of an ONNX file, under the names that they had in PyTorch."""

from pathlib import Path

import numpy as np

from checkpoints_convert.errors import CheckpointError


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """Reads the initializers of an ONNX graph; nothing is run.

    PyTorch's exporter drops the name of a linear layer's weight and stores it transposed, as the second input of a
    MatMul node that still carries the module's path: /encoder/layer.0/mlp/fc1/MatMul becomes
    encoder.layer.0.mlp.fc1.weight, [out, in] again. Other nameless initializers (names with "::") take the path of
    the node that reads them.

    Args:
        path: the file.

    Returns:
        Arrays by name.

    Raises:
        CheckpointError: the file is not a complete ONNX model, or two weights would get the same name.
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise CheckpointError(
            f"{path} is an ONNX file, and reading it needs the onnx package: pip install onnx"
        ) from None
    try:
        graph = onnx.load(str(path), format="protobuf").graph
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # protobuf, onnx and NumPy each raise their own for a damaged file
        raise CheckpointError(
            f"{path} is not a complete ONNX model ({type(error).__name__}): download it again"
        ) from None
    if not arrays:
        raise CheckpointError(f"{path} holds no weights: expected an ONNX model with initializers")

    readers = {source: node for node in graph.node for source in node.input}
    named: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if "::" in name and name in readers:
            module, _, operation = readers[name].name.strip("/").replace("/", ".").rpartition(".")
            is_weight = readers[name].op_type == "MatMul"
            name = f"{module}.weight" if is_weight else f"{module}.{operation}"
            array = array.T if is_weight else array
        if name in named:
            raise CheckpointError(f"{path} holds two weights that are called {name!r}")
        named[name] = array
    return named
