"""From saved training states to the state dict of one model: entries, averages, prefixes, chunks of blocks.

One of student, teacher and averaged weights is chosen, and the user is told which parts are left out.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.rules import Given
from checkpoints_convert.torch_file import TRAINING_STATE, WRAPPERS, check_not_skipped

AVERAGED = ("teacher", "model_ema", "state_dict_ema", "ema_model", "ema", "params_ema", "target_encoder")
"""Entries, and first parts of names, that are a moving average of others beside them.

mmengine's `ema_state_dict` is none of them: it holds what was not averaged, and `state_dict` the averages.
Source: facebookresearch/dinov2 (teacher), facebookresearch/deit (model_ema), timm (state_dict_ema), ijepa
(target_encoder), BasicSR (params_ema); open-mmlab/mmengine, mmengine/hooks/ema_hook.py.
"""
PARALLEL = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DistributedDataParallel, torch.compile, FSDP and checkpoints of activations put into names, anywhere."""
CHUNK = re.compile(r"((?:[^.]+\.)*?blocks)\.(\d{1,4})\.(\d{1,4})\.(.+)")
BESIDE = re.compile(r"(?:^|\.)(?:(?:dino|ibot|ibot_patch|koleo)_(?:head|loss)|head\.mlp\.\d+|head\.last_layer)\.")
HEAD = "head or loss of self-supervised training"
DEEPEST_PREFIX = 8
"""Parts of a name that may come off."""
DEEPEST = 64
"""Mappings inside one another."""


@dataclass
class StateDict:
    """The tensors of one model.

    Attributes:
        tensors: by name.
        left: reason -> how many other tensors were left out.
    """

    tensors: dict[str, np.ndarray]
    left: Counter[str] = field(default_factory=Counter)

    def keep(self, names: Mapping[str, str], reason: str) -> None:
        """Goes on with these tensors alone, old name -> new."""
        self.left[reason] += len(self.tensors) - len(names)
        self.tensors = {new: self.tensors[old] for old, new in names.items()}


def state_dict(tree: Mapping[str, object], given: Given, key: str | None = None) -> StateDict:
    """Finds the tensors of one model in what was saved, under the names that its own code gave them.

    Args:
        tree: what was saved.
        given: is told what was taken of several.
        key: the entry to take, with dots between the parts of its name.

    Raises:
        CheckpointError: there is no such entry, there are no tensors, or two have one name.
    """
    if key is not None:
        found = StateDict(_flat(tree, weights=True))
        prefix = f"{key}."
        names = {name: name.removeprefix(prefix) for name in found.tensors if name.startswith(prefix)}
        if not names:
            entries = ", ".join(dict.fromkeys(name.partition(".")[0][:60] for name in [*found.tensors][:1000]))
            raise CheckpointError(
                f"the checkpoint has no tensors in an entry {key!r}; its entries: {entries[:300]}"
            )
        found.keep(names, f"beside the entry {key}")
    else:
        found = _entry(tree, given)
    if not found.tensors:
        keys = ", ".join(str(each)[:40] for each in [*tree][:5])
        raise CheckpointError(f"expected tensors by name, got none under the keys {keys or '(none)'}")
    plain = {name: PARALLEL.sub("", name) for name in found.tensors}
    twice = [name for name, count in Counter(plain.values()).items() if count > 1]
    if twice:
        raise CheckpointError(f"expected one tensor by each name, got two called {twice[0][:100]!r}")
    found.keep(plain, "")
    _take_averaged(found, given)
    found.keep(_unchunked(found.tensors), "")
    found.left = +found.left
    return found


def prefixes(tensors: Mapping[str, object]) -> list[str]:
    """What may come off all names: nothing, and then what they all begin with, part by part.

    Heads of self-supervised training do not count.
    """
    names = [name for name in tensors if not BESIDE.search(name)]
    found = [""]
    while names and len(found) <= DEEPEST_PREFIX:
        last = found[-1]
        part = names[0][len(last) :].partition(".")[0]
        prefix = f"{last}{part}."
        if not all(name.startswith(prefix) for name in names):
            break
        found.append(prefix)
    return found


def without_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> StateDict:
    """The tensors with this prefix, one of `prefixes`, without it."""
    found = StateDict(dict(tensors))
    found.keep({name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}, HEAD)
    return found


def _entry(tree: Mapping[str, object], given: Given) -> StateDict:
    """The state dict in a tree: an averaged one, or the first of `WRAPPERS`, as long as there is one."""
    left: Counter[str] = Counter()
    while True:
        mappings = {
            name: value
            for name, value in tree.items()
            if isinstance(name, str) and isinstance(value, Mapping) and name not in TRAINING_STATE
        }
        entries = {name: flat for name, value in mappings.items() if (flat := _flat(value, training=False))}
        plain = next((name for name in WRAPPERS if name in entries and name not in AVERAGED), None)
        here = [name for name, value in tree.items() if isinstance(name, str) and isinstance(value, np.ndarray)]
        rival = entries[plain] if plain else dict.fromkeys(here)
        averaged = next(
            (name for name in AVERAGED if name in entries and (not rival or _are_twins(entries[name], rival))), None
        )
        taken = averaged or plain
        if taken is None:
            return StateDict(_flat(tree, weights=True), left)
        others = [name for name in entries if name != taken]
        if others:
            given.say(
                f"the entry {taken!r} is taken{', the averaged weights' if averaged else ''}; beside it are "
                f"{', '.join(each[:40] for each in others[:4])}: --key names another"
            )
        left[f"beside the entry {taken}"] += sum(map(len, entries.values())) + len(here) - len(entries[taken])
        tree = mappings[taken]


def _take_averaged(found: StateDict, given: Given) -> None:
    """Of names that begin with student and teacher, or the like, leaves out the student's."""
    common = prefixes(found.tensors)[-1]
    groups: dict[str, dict[str, str]] = {}
    for name in found.tensors:
        if name.startswith(common):
            part, _, rest = name.removeprefix(common).partition(".")
            groups.setdefault(part, {})[rest] = name
    for averaged in AVERAGED:
        twins = [
            each
            for each in groups
            if each != averaged and averaged in groups and _are_twins(groups[averaged], groups[each])
        ]
        if not twins:
            continue
        given.say(
            f"the weights of {averaged!r} are taken, which are averaged; beside them are those of "
            f"{', '.join(each[:40] for each in twins)}: --key names others"
        )
        gone = {name for each in twins for name in groups[each].values()}
        names = {name: name for name in found.tensors if name not in gone}
        found.keep(names, f"weights of {', '.join(each[:40] for each in twins)}, of which {averaged} are averages")
        return


def _are_twins(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two groups of tensors have at least half of the smaller one's names in common, but for prefixes."""
    sets = []
    for group in (one, other):
        plain = {PARALLEL.sub("", name): None for name in group}
        prefix = prefixes(plain)[-1]
        sets.append({name.removeprefix(prefix) for name in plain})
    first, second = sets
    return 2 * len(first & second) >= max(1, min(len(first), len(second)))


def _unchunked(tensors: Mapping[str, object]) -> dict[str, str]:
    """Every name -> the same without the chunk that its block is in.

    DINOv2's training code wraps runs of blocks, and numbers them in a chunk as in the whole, after placeholders;
    others begin every chunk at 0.

    Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py (`BlockChunk`).
    """
    matches = {name: match for name in tensors if (match := CHUNK.fullmatch(name))}
    blocks: dict[str, set[tuple[int, int]]] = {}
    for match in matches.values():
        blocks.setdefault(match.group(1), set()).add((int(match.group(2)), int(match.group(3))))
    numbers = {}
    for before, places in blocks.items():
        if any(name.startswith(f"{before}.") and name not in matches for name in tensors):
            continue
        inner = [number for _, number in places]
        is_absolute = len(set(inner)) == len(inner)
        for number, place in enumerate(sorted(places)):
            numbers[before, place] = place[1] if is_absolute else number
    renamed = {name: name for name in tensors}
    for name, match in matches.items():
        place = match.group(1), (int(match.group(2)), int(match.group(3)))
        if place in numbers:
            renamed[name] = f"{place[0]}.{numbers[place]}.{match.group(4)}"
    return renamed


def _flat(tree: Mapping[str, object], *, training: bool = True, weights: bool = False) -> dict[str, np.ndarray]:
    """The arrays in a tree of mappings, with dots between the keys.

    Args:
        tree: mappings of mappings and arrays. Keys that are no texts, and other values, are skipped.
        training: whether `TRAINING_STATE` is skipped at the top.
        weights: whether these are the weights, of which no object may hold a part that was left out.

    Raises:
        CheckpointError: a name or a mapping stands there twice, or a part of the weights was left out.
    """
    found: dict[str, np.ndarray] = {}
    seen = {id(tree)}
    open_ = [("", tree, iter(tree.items()))]
    while open_:
        prefix, _, items = open_[-1]
        key, value = next(items, (None, open_))
        if value is open_:
            open_.pop()
        elif isinstance(key, str) and isinstance(value, np.ndarray):
            if prefix + key in found:
                raise CheckpointError(f"expected one tensor by each name, got two called {(prefix + key)[:100]!r}")
            found[prefix + key] = value
        elif isinstance(key, str) and isinstance(value, Mapping):
            if training and not prefix and key in TRAINING_STATE:
                continue
            if id(value) in seen:
                raise CheckpointError(
                    f"expected a tree of mappings, got one that stands twice in it, as {prefix + key!r:.100}"
                )
            if len(open_) == DEEPEST:
                raise CheckpointError(f"expected at most {DEEPEST} mappings inside one another, got more")
            seen.add(id(value))
            open_.append((f"{prefix}{key}.", value, iter(value.items())))
        elif isinstance(key, str) and weights and (prefix or key not in TRAINING_STATE):
            check_not_skipped(prefix + key, value)
    return found
