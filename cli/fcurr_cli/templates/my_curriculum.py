"""A pace and a score of one's own. What flows is positional, what is fixed is by name."""

import torch

from fcurr.types import Harder, Iterations, Samples, Share, Times


def stairs(
    state, iteration, *, initial_size: Share, stairs: Times, total_iterations: Iterations, dataset_size: Samples
):
    """How many samples are in play: from `initial_size` to everything, in equal steps.

    `initial_size` and `stairs` are written in the config and checked against their types; `total_iterations` and
    `dataset_size` are the run's own. A pace that remembers nothing has the state ().
    """
    step = torch.floor(torch.as_tensor(iteration) * stairs / total_iterations)  # 0, 1, ..., stairs
    share = initial_size + (1 - initial_size) * torch.clamp(step / (stairs - 1 if stairs > 1 else 1), max=1)
    return (share * dataset_size).long().clamp(1, dataset_size)


def surprise(params, batch, *, model) -> Harder:
    """How hard each sample is: one minus the probability of its label. Harder says that larger is harder."""
    probabilities = model.apply(params, batch.x).softmax(-1)  # [batch, class]
    return 1 - probabilities.gather(-1, batch.y[:, None])[:, 0]  # [batch]
