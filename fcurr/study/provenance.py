"""Which samples a result has seen, and what for: so that nothing is judged by samples it was made from.

A result inherits what its inputs have seen and adds its own uses. A use is of parts of a split: (key of the samples,
"train"). The rule: whoever evaluates looks at samples that were neither fitted, nor selected, nor calibrated on;
whoever selects or calibrates, at samples that were not fitted on.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr.errors import BadInput

FORBIDDEN = {
    "evaluate": ("fit", "select", "calibrate"),
    "calibrate": ("fit",),
    "select": ("fit",),
    "fit": (),
}  # use -> uses that the same samples may not have had before
WORDS = {"fit": "fitted", "select": "selected", "calibrate": "calibrated", "evaluate": "evaluated"}

Seen = dict[str, tuple[tuple[str, str], ...]]  # use -> parts of splits, each once
Samples = Mapping[str, Tensor]  # data set -> [sample] int64, positions in it


class Leakage(BadInput):
    """Samples would judge what was made from them."""


class Overlap(NamedTuple):
    use: str  # what is done now
    before: str  # what was done before
    samples: Tensor  # [sample] int64, positions in the data set, ascending


def union(several: Iterable[Mapping[str, Iterable[Iterable[str]]]]) -> Seen:
    """All that any of them has seen."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for seen in several:
        for use, parts in seen.items():
            found.setdefault(use, set()).update(tuple(part) for part in parts)
    return {use: tuple(sorted(parts)) for use, parts in sorted(found.items())}  # type: ignore[return-value]


def merged(several: Iterable[Samples]) -> dict[str, Tensor]:
    """The samples of several parts, by data set."""
    found: dict[str, list[Tensor]] = {}
    for samples in several:
        for data, ids in samples.items():
            found.setdefault(data, []).append(ids)
    return {data: torch.cat(ids).unique() for data, ids in found.items()}


def overlaps(before: Mapping[str, Samples], uses: Mapping[str, Samples]) -> list[Overlap]:
    """Where uses meet samples that were used before in a way that forbids it; each other as well. Samples of different
    data sets never meet."""
    found = []
    for use, samples in uses.items():
        for earlier in FORBIDDEN[use]:
            old = merged([before.get(earlier, {}), uses.get(earlier, {})])
            both = [ids[torch.isin(ids, old[data])].unique() for data, ids in samples.items() if data in old]
            met = torch.cat(both) if both else torch.zeros(0, dtype=torch.int64)
            found += [Overlap(use, earlier, met)] if len(met) else []
    return found


def told(found: Overlap) -> str:
    """An overlap in words."""
    few = ", ".join(map(str, found.samples[:3].tolist())) + (", ..." if len(found.samples) > 3 else "")
    return f"{found.use} on {len(found.samples)} samples that what it reads was {WORDS[found.before]} on ({few})"


def refuse(name: str, found: list[Overlap]) -> None:
    """Leakage, in words, if there is any."""
    if found:
        words = 'leakage = "record" in [study] goes on and writes it down'
        raise Leakage(f"{name} would {told(found[0])}; {words}")
