"""Prompts on the command line, for models that answer them."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm import tqdm

from hourglass_jax.tasks.automatic_masks import AutomaticSettings

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.imaging.images import Preprocessing
    from hourglass_jax.models.base import Model
    from hourglass_jax.tasks.base import Rendering


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """What a model that answers prompts, such as Segment Anything, is asked."""

    point: tyro.conf.UseAppendAction[tuple[tuple[float, float], ...]] = ()
    """A point on what is wanted, x and y in pixels of the photograph; may be given several times."""
    label: tuple[int, ...] = ()
    """1 for each point on what is wanted, 0 for each point beside it; by default all are on it."""
    box: tyro.conf.UseAppendAction[tuple[tuple[float, float, float, float], ...]] = ()
    """A box around what is wanted, left, top, right and bottom in pixels; one belongs to the points, if there are
    some, and of several each is a prompt of its own."""
    multimask: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the three masks of each prompt; by default the best one."""
    everything: tyro.conf.FlagCreatePairsOff[bool] = False
    """Find all masks of the photograph, from a grid of points."""
    automatic: AutomaticSettings = AutomaticSettings()
    """How --everything asks and selects."""

    @property
    def are_given(self) -> bool:
        """Whether any of the options is given."""
        return self != PromptOptions()


Prompts = Annotated[PromptOptions, tyro.conf.arg(name="")]


class Asker:
    """Asks a model the same prompts about one photograph after the other.

    Args:
        model: under any plan.
        preprocessing: of photographs.
        options: what is asked.

    Raises:
        ValueError: the model answers no prompts, or the options do not fit each other.
    """

    def __init__(self, model: "Model", preprocessing: "Preprocessing", options: PromptOptions) -> None:
        from hourglass_jax.automatic_predictor import AutomaticPredictor
        from hourglass_jax.imaging.padded_square import PaddedSquare
        from hourglass_jax.models.base import find_task
        from hourglass_jax.prompt_predictor import PromptPredictor

        if not (options.point or options.box or options.everything):
            raise ValueError(f"a {type(model).__name__} answers prompts: expected --point, --box or --everything")
        if options.everything and (options.point or options.box):
            raise ValueError("--everything finds all masks: expected no --point and no --box beside it")
        if options.everything and options.multimask:
            raise ValueError("--everything selects among all masks by itself: expected no --multimask beside it")
        if not options.everything and options.automatic != AutomaticSettings():
            raise ValueError("--automatic says how --everything asks: expected it, got prompts of yours")
        if options.point and len(options.box) > 1:
            raise ValueError(f"points go with one box at most: expected one --box, got {len(options.box)}")
        if options.label and len(options.label) != len(options.point):
            raise ValueError(
                f"--label must have a number for each point, {len(options.point)}, got {len(options.label)}"
            )
        self.options = options
        self.predictor = PromptPredictor(
            model, preprocessing=preprocessing if isinstance(preprocessing, PaddedSquare) else None
        )
        self.task = find_task(model, None)
        self.automatic = AutomaticPredictor(self.predictor, options.automatic)

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked, as JSON."""
        return dataclasses.asdict(self.options)

    def __call__(self, image: "np.ndarray") -> Any:
        """The answer about a photograph, uint8 [rows, columns, 3]."""
        if self.options.everything:
            steps = self.automatic.steps((image.shape[0], image.shape[1]))
            with tqdm(total=steps, desc="points", disable=not sys.stderr.isatty()) as bar:
                return self.automatic(image, on_progress=bar.update)
        from hourglass_jax.tasks.prompted_masks import Masks

        options = self.options
        is_doubtful = len(options.point) == 1 and not options.box
        found = self.predictor.masks(
            self.predictor.encode(image),
            points=[options.point] if options.point else None,
            labels=[options.label] if options.label else None,
            boxes=list(options.box) or None,
            multimask=True if options.multimask else "best" if is_doubtful else False,
        )
        return Masks(*(each.reshape(-1, *each.shape[2:]) for each in found))

    def render(self, image: "np.ndarray", result: Any) -> "Rendering":
        """What is written of an answer, the prompts drawn on the photograph."""
        import numpy as np

        from hourglass_jax.imaging.prompt_pictures import draw_prompts
        from hourglass_jax.tasks import automatic_masks

        if self.options.everything:
            return automatic_masks.render(image, result)
        rendering = self.task.render(image, result)
        points, boxes = np.array(self.options.point), np.array(self.options.box)
        labels = np.array(self.options.label or [1] * len(points))
        picture = draw_prompts(rendering.overview, (image.shape[0], image.shape[1]), points, labels, boxes)
        return dataclasses.replace(rendering, pictures={**rendering.pictures, "overlay": picture})
