"""Mask2Former: queries that answer with a class and a mask each; semantic, instance and panoptic segmentation.

Source: facebookresearch/Mask2Former, mask2former/maskformer_model.py (arXiv 2112.01527).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.base import Features
from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.backbones.registry import build_backbone
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.segment_labels import SegmentLabels, segment_labels
from hourglass_jax.imaging.shortest_edge import ShortestEdge
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.models.mask2former_decoders import GROUPS, MaskedDecoder, PixelDecoder
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.instances import Instances
from hourglass_jax.tasks.panoptic import Panoptic
from hourglass_jax.tasks.queries import QueryOutputs
from hourglass_jax.tasks.query_segmentation import QuerySegmentation

TASKS = ("panoptic", "instances", "segmentation")


@dataclass(frozen=True)
class Mask2FormerConfig:
    """A backbone, the two decoders, and what the results are.

    Attributes:
        backbone: a Swin whose four maps have norms, or a ResNet.
        classes: number of them, without "no object".
        queries: number of them.
        width: channels of both decoders, a multiple of 32.
        heads: of every attention of the decoders.
        points: that a token reads of every level in the pixel decoder.
        encoder_layers: of the pixel decoder.
        encoder_hidden: channels of their feed-forward.
        decoder_layers: of the queries.
        decoder_hidden: channels of their feed-forward.
        tasks: what the model was trained for, of "panoptic", "instances", "segmentation"; the first is the default.
        dataset: whose classes they are, one of `imaging.segment_labels.DATASETS`, or None.
        labels: names and colours of the classes where they are nobody's, or None.
        things: the classes that can be counted; by default those of the data set, and all where there is none.
        detections: that are kept of an image, with the highest scores.
        object_threshold: what a query's score must exceed to be part of a panoptic map.
        overlap_threshold: the share of its mask that must be left of a query in a panoptic map.
        preprocessing: of images.
    """

    backbone: SwinConfig | DetectorResNetConfig = field(default_factory=SwinConfig)
    classes: int = 133
    queries: int = 100
    width: int = 256
    heads: int = 8
    points: int = 4
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_layers: int = 9
    decoder_hidden: int = 2048
    tasks: tuple[str, ...] = TASKS
    dataset: str | None = None
    labels: Labels | None = None
    things: tuple[int, ...] | None = None
    detections: int = 100
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    preprocessing: ShortestEdge = field(default_factory=ShortestEdge)

    def __post_init__(self) -> None:
        check_config(self, layers=("encoder_layers", "decoder_layers"), zero=("things",))
        backbone = self.backbone
        if isinstance(backbone, SwinConfig) and (len(backbone.depths) != 4 or not backbone.stage_norms):
            raise ValueError("a Swin as the backbone must be one of four stages with a norm each")
        if self.width % GROUPS or self.width % self.heads:
            raise ValueError(f"width must be a multiple of {GROUPS} and of heads, got {self.width}")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks must be some of {', '.join(TASKS)}, got {', '.join(self.tasks) or 'none'}")
        for name in ("object_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        self.segment_labels()

    def segment_labels(self) -> SegmentLabels:
        """The classes; ValueError if they do not fit one another."""
        return segment_labels(self.dataset, self.classes, labels=self.labels, things=self.things)


class Mask2Former(VisionModel):
    """Image to the class logits and mask logits of every query."""

    config_class = Mask2FormerConfig
    config: Mask2FormerConfig
    multiple = 32

    def __init__(
        self, config: Mask2FormerConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or Mask2FormerConfig()
        backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        super().__init__(config, backbone)
        self.pixel_decoder = PixelDecoder(
            tuple(backbone.channels.values()),
            config.width,
            config.heads,
            config.points,
            config.encoder_layers,
            config.encoder_hidden,
            rngs=rngs,
        )
        self.decoder = MaskedDecoder(
            config.classes,
            config.queries,
            config.width,
            config.heads,
            config.decoder_layers,
            config.decoder_hidden,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def tasks(self) -> dict[str, Task]:
        """Those that the model was trained for."""
        config, labels = self.config, self.config.segment_labels()
        known = (
            Panoptic(labels, config.dataset, config.object_threshold, config.overlap_threshold),
            Instances(labels, config.dataset, config.detections, things_only="panoptic" in config.tasks),
            QuerySegmentation(labels, config.dataset, alone=config.tasks == ("segmentation",)),
        )
        by_name = {task.name: task for task in known}
        return {name: by_name[name] for name in config.tasks}

    def features(self, images: jax.Array) -> Features:
        """The backbone's features of images of any size, padded with zeros to multiples of 32 pixels."""
        padding = [(0, -length % self.multiple) for length in images.shape[1:3]]
        return self.backbone(jnp.pad(images, ((0, 0), *padding, (0, 0))))

    def head_input(self, features: Features) -> jax.Array:
        """The three coarser maps as the pixel decoder's layers read them: projected and normed, [B, S, C]."""
        return self.pixel_decoder.project(_maps(features))[0]

    def decode(self, features: Features, size: Size | None) -> QueryOutputs:
        """The head; `size` plays no part: masks have a position for every 4 x 4 pixels of the padded images."""
        return self.predictions(features)[-1]

    def predictions(self, features: Features) -> list[QueryOutputs]:
        """The outputs before the decoder's first layer and after every one; the last are what `decode` returns."""
        with jax.named_scope("head"):
            mask_features, levels = self.pixel_decoder(_maps(features))
            return [
                QueryOutputs(self.decoder.classifier(state), self.decoder.masks(state, mask_features))
                for state in self.decoder.states(mask_features, levels)
            ]


def _maps(features: Features) -> tuple[jax.Array, ...]:
    return tuple(features.maps().values())
