"""Objects of training frameworks that checkpoints contain beside weights; they are never read."""

_NAMES = frozenset((
    "_io.BytesIO", "argparse.ArgumentParser", "collections.deque", "torch.torch_version.TorchVersion",
    "types.SimpleNamespace", "typing.Any",
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("bool", "dict", "float", "int", "list", "range", "slice", "str", "tuple", "xrange")
    ),
))  # fmt: skip

_MODULES = (
    # Python
    "datetime.", "decimal.", "fractions.", "pathlib.", "uuid.", "zoneinfo.", "numpy.random.",
    # settings
    "addict.", "box.", "detectron2.config.", "easydict.", "fvcore.common.config.", "ml_collections.", "munch.",
    "omegaconf.", "yacs.",
    # training
    "accelerate.", "apex.", "deepspeed.", "fairscale.", "ignite.", "lightning.", "lightning_fabric.",
    "lightning_utilities.", "mmcv.", "mmengine.", "pytorch_lightning.", "timm.loss.", "timm.optim.",
    "timm.scheduler.", "torch.amp.", "torch.cuda.amp.", "torch.nn.modules.loss.", "torch.optim.",
    "torch.utils.data.", "torchmetrics.", "transformers.trainer_pt_utils.", "transformers.trainer_utils.",
    "transformers.training_args.",
)  # fmt: skip


def is_known_object(name: str) -> bool:
    """Whether a global is known to stand for settings or for the state of a training, but for no weights."""
    return name in _NAMES or name.startswith(_MODULES)
