"""Token merging (arXiv 2210.09461) for one image, in float64 and token by token."""

import numpy as np

Array = np.ndarray
Group = tuple[int, ...]


def match(
    metric: Array, count: int, *, offset: int = 0, in_order: bool = True, columns: int | None = None
) -> list[Group]:
    """The groups that are left, in their order, each with its partner of the second half last.

    Tokens alternate between the halves; `offset` tokens that take part in the alternation only come before them.
    With `columns`, they are a grid's, and alternate along its rows and its columns.
    """
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)

    def half(i: int) -> int:
        return (i + offset) % 2 if columns is None else (i // columns + i % columns) % 2

    first = [i for i in range(len(metric)) if half(i) == 0]
    second = [i for i in range(len(metric)) if half(i) == 1]
    partner, cosine = {}, {}
    for i in first:
        cosines = [float(unit[i] @ unit[j]) for j in second]
        partner[i], cosine[i] = second[int(np.argmax(cosines))], max(cosines)
    by_cosine = sorted(first, key=lambda i: -cosine[i])
    joining, staying = by_cosine[:count], by_cosine[count:]
    if in_order:
        staying = sorted(staying)
    groups = [(i,) for i in staying]
    return groups + [(*(i for i in joining if partner[i] == j), j) for j in second]


def merge(tokens: Array, sizes: Array, groups: list[Group], value: str = "mean") -> tuple[Array, Array]:
    """Tokens and sizes of the groups."""
    values, totals = [], []
    for group in groups:
        members = list(group)
        total = sizes[members].sum()
        mean = (sizes[members][:, None] * tokens[members]).sum(axis=0) / total
        if value == "medoid":
            *joined, partner = members
            distance = {i: float(np.sum((tokens[i] - mean) ** 2)) for i in members}
            best = min(joined, key=distance.get, default=partner)
            # Of two tokens of one size, both are as near to the mean: the partner is taken.
            mean = tokens[best if distance[best] < (1 - 1e-4) * distance[partner] else partner]
        values.append(mean)
        totals.append(total)
    return np.stack(values), np.array(totals)


def unmerge(values: Array, steps: list[list[Group]], count: int) -> Array:
    """What every one of `count` tokens has become after some merges."""
    place = list(range(count))
    for groups in steps:
        joined = {member: new for new, group in enumerate(groups) for member in group}
        place = [joined[old] for old in place]
    return values[place]
