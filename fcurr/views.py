"""Pure views of a state, side by side: `view(state) -> number`, written beside the metrics at every evaluation."""

import torch
from torch import Tensor

from fcurr import tree
from fcurr.training import TrainState


def parameter_norm(state: TrainState) -> Tensor:
    """The Euclidean norm of all parameters."""
    return tree.norm(state.params)


def largest_parameter(state: TrainState) -> Tensor:
    """The largest magnitude of a parameter."""
    return torch.stack([leaf.abs().max() for leaf in state.params.values()]).max()


def last_loss(state: TrainState) -> Tensor:
    """The mean loss of the last batch, before its step."""
    return state.loss
