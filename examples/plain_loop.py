"""A training loop of one's own in the order of a curriculum, with DataLoader workers, stopped and continued.

    python examples/plain_loop.py

Shows that the samples trained on are, step by step, the samples that the curriculum draws, and that a run stopped in
the middle of a pass ends with the same weights, bit for bit, as the run that was never stopped.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fcurr import curriculum, pacing, sampler
from fcurr.loading import CurriculumBatchSampler, weighted_mean
from fcurr.sampler import Lessons
from fcurr.scoring.ensembles import fold_masks

STEPS, BATCH, STOP = 80, 64, 37


class Numbered(Dataset):
    """Any data set of (x, y), as (x, y, id): ids travel with the samples, through workers and into the loop."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return *self.data[index], index


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def fitted(x, y):
    """A small model of these samples: whatever you train with. Here, 40 steps on all of them at once."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def difficulty(x, y):
    """How hard each sample is: its loss under a model that has not seen it (cross-validation). Larger is harder."""
    scores = torch.zeros(len(y))
    for held_out in fold_masks(len(y), folds=3, repeats=1, seed=0):
        net = fitted(x[~held_out], y[~held_out])
        with torch.no_grad():
            scores[held_out] = F.cross_entropy(net(x[held_out]), y[held_out], reduction="none")
    return scores


def lessons_of(scores) -> Lessons:
    """Easy samples first: a fifth of them at the start, all of them after half of the run."""
    order = curriculum.easy_first(scores, seed=0)
    pace = partial(
        pacing.linear, initial_size=0.2, final_iteration=0.5, total_iterations=STEPS, dataset_size=len(scores)
    )
    return sampler.lessons(order, sampler.tabulate(pace, STEPS), torch.tensor(0))


def train(data, lessons, weights, folder, until=STEPS):
    """Train up to a step and save; begin where the folder's checkpoint is, if there is one. Returns the model, and the
    ids of each batch that was trained on here."""
    net, seen, trained = network(), [], 0
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    batches = CurriculumBatchSampler(lessons, batch_size=BATCH, total_iterations=STEPS)
    if (folder / "sampler.json").exists():
        batches.load_state_dict(json.loads((folder / "sampler.json").read_text()))
        saved = torch.load(folder / "model.pt", weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        trained = saved["trained"]

    for x, y, ids in DataLoader(Numbered(data), batch_sampler=batches, num_workers=2):
        losses = F.cross_entropy(net(x), y, reduction="none")
        optimizer.zero_grad()
        weighted_mean(losses, weights[ids]).backward()
        optimizer.step()
        seen.append(ids.tolist())
        trained += 1
        if trained == until:
            break

    # The workers have drawn further than this: the loop alone knows how many batches were trained on.
    (folder / "sampler.json").write_text(json.dumps(batches.state_dict(trained=trained)))
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "trained": trained}, folder / "model.pt")
    return net, seen


def main():
    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    scores = difficulty(x, y)
    lessons, weights = lessons_of(scores), 1 / (1 + scores)  # a weight for each id: what is hard counts less
    data = TensorDataset(x, y)

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole, seen = train(data, lessons, weights, Path(one))
        _, before = train(data, lessons, weights, Path(two), until=STOP)
        resumed, after = train(data, lessons, weights, Path(two))

    asked, _ = sampler.ahead(sampler.start(lessons), torch.tensor(0), lessons, steps=STEPS, batch_size=BATCH)
    assert seen == asked.tolist(), "the order trained on is the order asked for"
    assert before + after == seen and len(before) == STOP, "also if it is stopped and continued"
    place = sampler.seek(lessons, STOP, batch_size=BATCH)
    assert 0 < place.position < place.size, "in the middle of a pass"
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "and the weights are the same, bit for bit"
    accuracy = (whole(x).argmax(-1) == y).float().mean()
    print(f"{len(seen)} batches of {BATCH}, each as asked for; {accuracy:.0%} of the digits are known")
    print(f"stopped after {STOP} batches, {int(place.position)} samples into a pass of {int(place.size)}: same weights")


if __name__ == "__main__":
    main()
