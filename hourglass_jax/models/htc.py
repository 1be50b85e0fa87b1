"""Hybrid Task Cascade and Cascade Mask R-CNN: boxes that three heads refine in turn, and a mask for each.

One model with flags: Cascade Mask R-CNN has neither a semantic branch nor masks that build on one another; HTC has
both; HTC++ has an attention layer on the backbone's last map and soft-NMS besides.

Source: arXiv 1901.07518; open-mmlab/mmdetection 2.28, mmdet/models/roi_heads/{cascade,htc}_roi_head.py;
    SwinTransformer/Swin-Transformer-Object-Detection; czczup/ViT-Adapter, detection/configs/htc++.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.backbones.registry import build_backbone
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.keep_ratio import KeepRatio
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.segment_labels import SegmentLabels, segment_labels
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.models.htc_heads import (
    BOX_BINS,
    FUSED,
    MASK_BINS,
    BoxHead,
    MaskHead,
    ProposalHead,
    Pyramid,
    SemanticBranch,
)
from hourglass_jax.ops.boxes import anchor_boxes, decode_boxes
from hourglass_jax.ops.nms import Suppression, select, suppress
from hourglass_jax.ops.roi_align import roi_align, roi_levels
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.detections import DetectionOutputs, Detections

STRIDES = (4, 8, 16, 32, 64)
"""Of the pyramid's maps; regions are read from all but the last."""
PROPOSAL_STDS = (1.0, 1.0, 1.0, 1.0)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Of the deltas (x, y, width, height) that the proposals and the three heads regress."""


MASKS_AT_ONCE = 20
"""Of an image that has more."""


@dataclass(frozen=True)
class HTCConfig:
    """A backbone, the cascade, and what the results are.

    Attributes:
        backbone: a Swin whose four maps have norms, or a ResNet.
        classes: number of them, without "nothing".
        width: channels of the pyramid and of all convolutions.
        hidden: channels of the linear layers of the box heads.
        box_head: "2fc" (two linear layers) or "4conv1fc" (four convolutions and a linear layer).
        class_agnostic: whether a region has one box for all classes (HTC), or a box for each (Cascade Mask R-CNN).
        mask_flow: whether the mask heads read what those of the stages before made.
        semantic: whether boxes and masks read the semantic branch, too.
        attention_heads: of the global attention on the backbone's last map, or None without that layer.
        candidates: anchors of every map of the pyramid that are looked at, the best.
        proposals: regions that the cascade refines, the best of these.
        proposal_threshold: overlap above which the worse one of two anchors goes.
        score_threshold: what the probability of a class must exceed.
        suppression: what becomes of worse boxes of a class that overlap a better one.
        detections: that are kept of an image, the best.
        dataset: whose classes they are, one of `imaging.segment_labels.DATASETS`, or None.
        labels: names and colours of the classes where they are nobody's, or None.
        preprocessing: of images.
    """

    backbone: SwinConfig | DetectorResNetConfig = field(default_factory=SwinConfig)
    classes: int = 80
    width: int = 256
    hidden: int = 1024
    box_head: str = "4conv1fc"
    class_agnostic: bool = False
    mask_flow: bool = False
    semantic: bool = False
    attention_heads: int | None = None
    candidates: int = 1000
    proposals: int = 1000
    proposal_threshold: float = 0.7
    score_threshold: float = 0.05
    suppression: Suppression = field(default_factory=Suppression)
    detections: int = 100
    dataset: str | None = None
    labels: Labels | None = None
    preprocessing: KeepRatio = field(default_factory=KeepRatio)

    def __post_init__(self) -> None:
        check_config(self)
        backbone = self.backbone
        if isinstance(backbone, SwinConfig) and (
            len(backbone.depths) != 4 or not backbone.stage_norms or backbone.patch_size != STRIDES[0]
        ):
            raise ValueError("a Swin as the backbone must have four stages with a norm each, and patches of 4 x 4")
        if self.box_head not in ("2fc", "4conv1fc"):
            raise ValueError(f"box_head must be '2fc' or '4conv1fc', got {self.box_head!r}")
        for name in ("proposal_threshold", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        last = backbone.width * 2**3
        if self.attention_heads is not None and last % self.attention_heads:
            raise ValueError(f"attention_heads must divide {last} channels, got {self.attention_heads}")
        self.segment_labels()

    def segment_labels(self) -> SegmentLabels:
        """The classes, all of them things; ValueError if they do not fit one another."""
        return segment_labels(self.dataset, self.classes, labels=self.labels)


class HTCFeatures(NamedTuple):
    """What the backbone makes of padded images.

    Attributes:
        maps: [B, H, W, C] at strides 4, 8, 16 and 32.
        sizes: float32 [B, 2], (rows, columns) of the images before they were padded.
    """

    maps: tuple[jax.Array, ...]
    sizes: jax.Array


class Regions(NamedTuple):
    """What the cascade refines.

    Attributes:
        boxes: [..., N, 4]
        valid: bool [..., N], which of them there are.
    """

    boxes: jax.Array
    valid: jax.Array


class HTC(VisionModel):
    """Image to boxes, scores, classes and masks."""

    config_class = HTCConfig
    config: HTCConfig
    multiple = 32
    sized = True

    def __init__(self, config: HTCConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        config = config or HTCConfig()
        backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        super().__init__(config, backbone)
        width, kinds = config.width, {"dtype": dtype, "rngs": rngs}
        self.pyramid = Pyramid([*backbone.channels.values()], width, config.attention_heads, **kinds)
        self.proposal_head = ProposalHead(width, **kinds)
        stages = range(len(STAGE_STDS))
        self.box_heads = nnx.List(
            [
                BoxHead(
                    width,
                    config.hidden,
                    config.classes,
                    convolutions=config.box_head == "4conv1fc",
                    class_agnostic=config.class_agnostic,
                    **kinds,
                )
                for _ in stages
            ]
        )
        self.mask_heads = nnx.List(
            [MaskHead(width, config.classes, residual=config.mask_flow and stage > 0, **kinds) for stage in stages]
        )
        self.semantic_branch = SemanticBranch(width, len(STRIDES), **kinds) if config.semantic else None

    @property
    def tasks(self) -> dict[str, Task]:
        """Instances alone."""
        return {"instances": Detections(self.config.segment_labels(), self.config.dataset)}

    def features(self, images: jax.Array, sizes: jax.Array | None = None) -> HTCFeatures:
        """The backbone's maps of images of any size, padded with zeros to multiples of 32 pixels.

        Args:
            images: normalised, [B, rows, columns, 3].
            sizes: float32 [B, 2], (rows, columns) of images that were padded before; boxes end there.
        """
        size = images.shape[1:3]
        padding = [(0, -length % self.multiple) for length in size]
        maps = self.backbone(jnp.pad(images, ((0, 0), *padding, (0, 0)))).maps()
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array(size, jnp.float32), (images.shape[0], 2))
        return HTCFeatures(tuple(maps.values()), sizes)

    def head_input(self, features: HTCFeatures) -> jax.Array:
        """The pyramid that all heads read, without its coarsest map, as tokens [B, S, C], the finest map first."""
        maps = self.pyramid(features.maps)[:-1]
        return jnp.concatenate([each.reshape(len(each), -1, each.shape[-1]) for each in maps], axis=1)

    def decode(self, features: HTCFeatures, size: Size | None) -> DetectionOutputs:
        """The head; `size` plays no part: boxes are in pixels of the images, masks in parts of the boxes."""
        with jax.named_scope("head"):
            pyramid = self.pyramid(features.maps)
            regions = self.propose(pyramid, features.sizes)
            semantic = None if self.semantic_branch is None else self.semantic_branch(pyramid)

            def detect(each: tuple) -> DetectionOutputs:
                return self._detect(*each)

            return jax.lax.map(detect, (pyramid[:-1], semantic, regions, features.sizes))

    def propose(self, pyramid: tuple[jax.Array, ...], sizes: jax.Array) -> Regions:
        """The regions of images, from the best to the worst.

        Args:
            pyramid: maps [B, H, W, C].
            sizes: (rows, columns) of the images, [B, 2].
        """
        with jax.named_scope("rpn"):
            outputs = [self.proposal_head(each) for each in pyramid]
            anchors = [
                anchor_boxes((each.shape[1], each.shape[2]), stride)
                for each, stride in zip(pyramid, STRIDES, strict=True)
            ]
            return jax.vmap(self._propose, (0, None, 0))(outputs, anchors, sizes)

    def _propose(self, outputs: list[tuple[jax.Array, jax.Array]], anchors: list, size: jax.Array) -> Regions:
        """The regions of an image, from scores [A] and deltas [A, 4] of every map's anchors."""
        config, by_level = self.config, []
        most = max(min(config.candidates, len(each)) for each in anchors)
        for (scores, deltas), own in zip(outputs, anchors, strict=True):
            best, places = jax.lax.top_k(scores, min(config.candidates, len(own)))
            boxes = decode_boxes(jnp.asarray(own)[places], deltas[places], PROPOSAL_STDS, size)
            boxes = jnp.pad(boxes, ((0, most - len(best)), (0, 0)))
            by_level.append((boxes, jnp.pad(best, (0, most - len(best)), constant_values=-jnp.inf)))
        boxes, scores = (jnp.stack(each) for each in zip(*by_level, strict=True))
        has_area = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1) & (scores > -jnp.inf)
        kept = jax.vmap(suppress, (0, 0, None))(boxes, has_area, config.proposal_threshold)
        scores = jnp.where(kept, scores, -jnp.inf).ravel()
        best, places = jax.lax.top_k(scores, min(config.proposals, scores.size))
        return Regions(boxes.reshape(-1, 4)[places], best > -jnp.inf)

    def _detect(
        self, pyramid: tuple[jax.Array, ...], semantic: jax.Array | None, regions: Regions, size: jax.Array
    ) -> DetectionOutputs:
        """What is found in one image: maps [H, W, C], regions [N], (rows, columns)."""
        config = self.config
        with jax.named_scope("boxes"):
            logits, boxes = self.refine(pyramid, semantic, regions.boxes, size)
            probabilities = jax.nn.softmax(logits)[:, :-1]
            is_candidate = (probabilities > config.score_threshold) & regions.valid[:, None]
            candidates = jnp.where(is_candidate, probabilities, -jnp.inf)
            found = select(boxes, candidates, config.detections, config.suppression)
            is_found = found.scores > -jnp.inf
            chosen = boxes[found.places, jnp.minimum(found.labels, boxes.shape[1] - 1)]
            chosen = jnp.where(is_found[:, None], chosen, 0)
            # What is not finite gives no candidate: it has to show in the scores of what was not found.
            scores = jnp.where(is_found, found.scores, 0 * jnp.max(logits))
        masks = self.masks(pyramid, semantic, chosen, found.labels, is_found)
        return DetectionOutputs(chosen, scores, found.labels, masks)

    def refine(
        self, pyramid: tuple[jax.Array, ...], semantic: jax.Array | None, boxes: jax.Array, size: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The cascade of box heads on regions of one image.

        Args:
            pyramid: its maps, [H, W, C].
            semantic: what the semantic branch says of it, [H, W, C], or None.
            boxes: of the regions, [N, 4].
            size: (rows, columns) of the image.

        Returns:
            The mean of the three stages' logits [N, classes + 1], and the last stage's boxes [N, classes or 1, 4].
        """
        total, refined = jnp.zeros(()), boxes[:, None]
        for number, (head, stds) in enumerate(zip(self.box_heads, STAGE_STDS, strict=True)):
            logits, deltas = head(self._read(pyramid, semantic, boxes, BOX_BINS))
            total = total + logits
            refined = decode_boxes(boxes[:, None], deltas, stds, size)
            if number + 1 < len(STAGE_STDS):
                best = jnp.argmax(logits[:, :-1], axis=1) if refined.shape[1] > 1 else jnp.zeros(len(boxes), int)
                boxes = jnp.take_along_axis(refined, best[:, None, None], axis=1)[:, 0]
        return total / len(STAGE_STDS), refined

    def masks(
        self,
        pyramid: tuple[jax.Array, ...],
        semantic: jax.Array | None,
        boxes: jax.Array,
        labels: jax.Array,
        is_found: jax.Array,
    ) -> jax.Array:
        """The probability of every part of a box to belong to what was found there.

        It is the mean of the three stages' probabilities, as in mmdetection 2 and the paper; mmdetection 3.3 takes
        the last stage's of an HTC.

        Args:
            pyramid: maps of an image, [H, W, C].
            semantic: what the semantic branch says of it, [H, W, C], or None.
            boxes: [D, 4].
            labels: int [D].
            is_found: bool [D], which of them there are: the first ones. Where there are none no mask is made.

        Returns:
            float32 [D, 28, 28]
        """

        def make(boxes: jax.Array, labels: jax.Array) -> jax.Array:
            features = self._read(pyramid, semantic, boxes, MASK_BINS)
            before, total = None, jnp.zeros(())
            for head in self.mask_heads:
                logits, before = head(features, before, labels)
                total = total + jax.nn.sigmoid(logits)
            return total / len(self.mask_heads)

        def make_some(each: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            boxes, labels, is_found = each
            nothing = jnp.zeros((len(boxes), 2 * MASK_BINS, 2 * MASK_BINS))
            return jax.lax.cond(is_found[0], make, lambda *_: nothing, boxes, labels)

        with jax.named_scope("masks"):
            count, at_once = len(boxes), min(MASKS_AT_ONCE, len(boxes))
            parts = (
                jnp.pad(each, [(0, -count % at_once)] + [(0, 0)] * (each.ndim - 1))
                for each in (boxes, labels, is_found)
            )
            parts = tuple(each.reshape(-1, at_once, *each.shape[1:]) for each in parts)
            found = jax.lax.map(make_some, parts)
            return found.reshape(-1, *found.shape[2:])[:count]

    def _read(
        self, pyramid: tuple[jax.Array, ...], semantic: jax.Array | None, boxes: jax.Array, bins: int
    ) -> jax.Array:
        """The features of boxes [N, 4], [N, bins, bins, C]."""
        found = roi_align(pyramid, boxes, roi_levels(boxes, len(pyramid)), STRIDES[: len(pyramid)], bins)
        if semantic is None:
            return found
        nowhere_else = jnp.zeros(len(boxes), jnp.int32)
        fused = roi_align((semantic,), boxes, nowhere_else, (STRIDES[FUSED],), MASK_BINS)
        side = MASK_BINS // bins
        return found + fused.reshape(len(boxes), bins, side, bins, side, -1).mean(axis=(2, 4))
