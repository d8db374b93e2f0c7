"""Scores of one sample under one model: `score(params, batch) -> [batch]`, side by side.

`params` holds parameters and buffers, as Model.apply takes them. p = softmax(outputs). The sense of a score stands in
its return type: Harder, larger is harder; Easier, larger is easier.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcurr.types import Batch, Easier, Harder, Loss, Model, Params


def loss(params: Params, batch: Batch, *, model: Model, loss: Loss) -> Harder:
    """The loss of the sample; -log p[y] in nats with cross-entropy. Hacohen and Weinshall (2019), section 2."""
    return loss(model.apply(params, batch.x), batch.y)


def margin(params: Params, batch: Batch, *, model: Model) -> Easier:
    """p[y] less the largest other probability, in [-1, 1]; negative where the sample is misclassified.

    Toneva et al. (2019), section 3, call it the misclassification margin.
    """
    p = model.apply(params, batch.x).softmax(-1)  # [batch, class]
    true = batch.y.unsqueeze(-1)
    other = p.scatter(-1, true, -torch.inf).max(-1).values
    return p.gather(-1, true).squeeze(-1) - other


def confidence(params: Params, batch: Batch, *, model: Model) -> Easier:
    """The largest probability, max p, in [1 / classes, 1], whatever the label. Hendrycks and Gimpel (2017)."""
    return model.apply(params, batch.x).softmax(-1).max(-1).values


def entropy(params: Params, batch: Batch, *, model: Model) -> Harder:
    """-sum p log p in nats, in [0, log classes], whatever the label. Shannon (1948), section 6."""
    logs: Tensor = F.log_softmax(model.apply(params, batch.x), dim=-1)  # [batch, class]
    return -(logs.exp() * logs).sum(-1)
