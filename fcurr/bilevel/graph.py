"""Which level's loss reads which level's parameters: edges by name, and what follows from them before anything runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fcurr.errors import BadInput

Group = tuple[str, ...]  # levels that take their steps together, from the same state


class Dependencies(NamedTuple):
    """An edge says that a loss reads parameters: upwards where a level has come to, downwards what acts on a level.

    A level above waits for those below it. Its gradient is led down along all ways through these edges.
    """

    low_to_up: Mapping[str, Sequence[str]]  # a level -> the levels above it that read it
    up_to_low: Mapping[str, Sequence[str]]  # a level -> the levels below it that read it


class Graph(NamedTuple):
    """What the edges come to."""

    names: Group  # of all levels, as they were given
    reads: Mapping[str, frozenset[str]]  # level -> the levels its loss reads, itself among them
    above: Mapping[str, frozenset[str]]  # level -> where its edges lead up to
    below: Mapping[str, frozenset[str]]  # level -> all from which a way leads up to it
    depth: Mapping[str, int]  # level -> the edges of the longest way up, 0 at the top


def graph_of(names: Iterable[str], dependencies: Dependencies) -> Graph:
    """BadInput for a name that is no level's, a circle, and an upper level to which no way leads."""
    names = tuple(names)
    for kind, edges in zip(Dependencies._fields, dependencies, strict=True):
        for name, others in edges.items():
            if isinstance(others, str):
                raise BadInput(f"{kind}[{name!r}] is a text: a list of names, [{others!r}]")
    up, down = (_known(names, *edges) for edges in zip(Dependencies._fields, dependencies, strict=True))
    _check_circles(names, up)
    below = {name: frozenset(other for other in names if name in _reached(other, up)) for name in names}
    for upper in names:
        for lower in sorted(down[upper] - below[upper]):
            raise BadInput(
                f"up_to_low: `{lower}` is to read `{upper}`, but no way leads up from `{lower}` to `{upper}`: how "
                f"should `{upper}` see what it does? low_to_up needs an edge, or a way over other levels"
            )
    reads = {name: frozenset({name} | {other for other in names if name in up[other] | down[other]}) for name in names}
    depth = {name: max(map(len, _ways_up(name, up))) for name in names}
    return Graph(names=names, reads=reads, above=up, below=below, depth=depth)


def top(graph: Graph) -> list[Group]:
    """The groups with nobody above."""
    return _together([name for name in graph.names if graph.depth[name] == 0], graph)


def lower(graph: Graph, group: Group) -> list[Group]:
    """The groups right below a group: all their steps come before one of its."""
    depth = graph.depth[group[0]] + 1
    under = [name for name in graph.names if graph.depth[name] == depth and graph.above[name] & {*group}]
    return _together(under, graph)


def all_below(graph: Graph, group: Group) -> frozenset[str]:
    return frozenset().union(*(graph.below[name] for name in group))


def answered(graph: Graph, name: str) -> bool:
    """Whether a level below reads this one, so that its gradient has more than the direct part."""
    return any(name in graph.reads[other] for other in graph.below[name])


def _together(names: Sequence[str], graph: Graph) -> list[Group]:
    """Levels that share one below take their steps together."""
    groups: list[Group] = []
    for name in names:
        sharing = [group for group in groups if graph.below[name] & all_below(graph, group)]
        groups = [group for group in groups if group not in sharing]
        groups.append((*(other for group in sharing for other in group), name))
    return groups


def _known(names: Group, which: str, edges: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    for start, ends in edges.items():
        for name in (start, *ends):
            if name not in names:
                raise BadInput(f"{which}: `{name}` is no level; there are {', '.join(f'`{one}`' for one in names)}")
    return {name: frozenset(edges.get(name, ())) for name in names}


def _check_circles(names: Group, up: Mapping[str, frozenset[str]]) -> None:
    for name in names:
        if way := next(_ways_back(name, name, up), None):
            written = " -> ".join(f"`{one}`" for one in way)
            raise BadInput(f"low_to_up: {written} is a circle, and none of these levels could take the first step")


def _ways_back(start: str, end: str, up: Mapping[str, frozenset[str]], seen: Group = ()) -> Iterator[Group]:
    """Ways along the edges from a level to another, which no level is met on twice."""
    if end in up[start]:
        yield (*seen, start, end)
    for name in sorted(up[start] - {*seen, start, end}):
        yield from _ways_back(name, end, up, (*seen, start))


def _reached(name: str, up: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return up[name].union(*(_reached(other, up) for other in up[name]))


def _ways_up(name: str, up: Mapping[str, frozenset[str]]) -> Iterator[Group]:
    """All ways from a level to the top, without the level itself."""
    if not up[name]:
        yield ()
    for other in up[name]:
        yield from ((other, *way) for way in _ways_up(other, up))
