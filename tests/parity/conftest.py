"""Comparisons with PyTorch: skipped without it; timm can be imported where torchvision lacks its operators."""

from importlib.util import find_spec

if find_spec("torch") is None:
    collect_ignore_glob = ["*"]
else:
    import torch

    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        pass
    except RuntimeError as error:
        # Its compiled operators belong to another build of PyTorch; timm imports it, and needs none of them.
        if "torchvision::" not in str(error):
            raise
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
