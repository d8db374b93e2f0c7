"""Functions of one member, taken for all members."""

from collections.abc import Callable
from typing import Any

from torch.func import vmap

from fcurr import tree


def over_members(function: Callable[..., Any], members: Any, *shared: Any) -> Any:
    """`function(member, *shared)` of every member, stacked: mapped, or in turn where torch cannot map an operation."""
    if len(tree.leaves(members)[0]) > 1:
        try:
            return vmap(function, in_dims=(0, *(None for _ in shared)))(members, *shared)
        except RuntimeError:  # an LSTM, say; whatever else is wrong is raised again below
            pass
    return tree.stack([function(member, *shared) for member in tree.apart(members)])
