"""What training makes small, side by side: `loss(outputs, y) -> [batch]`, unreduced."""

import torch.nn.functional as F
from torch import Tensor

from fcurr.types import Part


def cross_entropy(outputs: Tensor, y: Tensor, *, smoothing: Part = 0.0) -> Tensor:
    """-log softmax(outputs)[y], in nats; with smoothing, the target is mixed with the uniform distribution.

    outputs [batch, class], y [batch] int64. Szegedy et al. (2016), section 7, for smoothing.
    """
    logs = F.log_softmax(outputs.transpose(-1, -2), dim=-2)  # [class, batch]: over a short last axis it is slow
    truth = -logs.gather(-2, y.unsqueeze(-2)).squeeze(-2)
    if not isinstance(smoothing, Tensor) and smoothing == 0:
        return truth
    return (1 - smoothing) * truth - smoothing * logs.mean(-2)
