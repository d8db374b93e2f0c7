"""Lightning in the order of a curriculum: crashed in the middle of a pass, continued from a checkpoint of Lightning's.

    pip install lightning
    python examples/with_lightning.py

Shows that the samples Lightning trains on are, step by step, the samples that the curriculum draws, before a crash
and after `Trainer.fit(ckpt_path=...)`, and that the weights at the end are those of the run that did not crash, bit
for bit.
"""

import logging
import tempfile
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from fcurr import curriculum, pacing, sampler
from fcurr.loading import CurriculumBatchSampler, weighted_mean

STEPS, BATCH, EPOCH = 60, 64, 20  # an epoch of Lightning's is 20 steps, whatever the passes over the data are
SAVE, CRASH = 27, 31


class Net(lightning.LightningModule):
    """A small network; it keeps the ids of each batch it is trained on."""

    def __init__(self, weights):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        self.weights = weights  # one for each id
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y, ids = batch
        self.seen.append(ids.tolist())
        losses = F.cross_entropy(self.layers(x), y, reduction="none")
        return weighted_mean(losses, self.weights[ids])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Digits(lightning.LightningDataModule):
    """The data and its order. Lightning writes the state of a data module into its checkpoints, and reads it back
    before it asks for the loader."""

    def __init__(self, data, lessons):
        super().__init__()
        self.data, self.lessons, self.state = data, lessons, None

    def train_dataloader(self):
        # Under several processes, each makes the sampler of its rank: BATCH counts the samples of all of them.
        self.batches = CurriculumBatchSampler(
            self.lessons,
            batch_size=BATCH,
            total_iterations=STEPS,
            steps_per_epoch=EPOCH,
            replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )
        if self.state is not None:
            self.batches.load_state_dict(self.state)
        return DataLoader(self.data, batch_sampler=self.batches, num_workers=2)

    def state_dict(self):
        # The workers have drawn further; Lightning counts what it trained on. `global_step` counts steps of the
        # optimizer: with accumulate_grad_batches = k, a step is k batches.
        return self.batches.state_dict(trained=self.trainer.global_step)

    def load_state_dict(self, state_dict):
        self.state = state_dict


class Crash(Exception):
    pass


class Crashing(Callback):
    """The power fails."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == CRASH:
            raise Crash


def train(net, digits, folder, *more, checkpoint=None):
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVE, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=STEPS // EPOCH,
        use_distributed_sampler=False,  # or, under several processes, Lightning puts a sampler of its own in the place
        callbacks=[saving, *more],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, digits, ckpt_path=checkpoint)
    return net


def main():
    # Lightning looks for a state in the loader, not in the data module, and warns that there is none.
    warnings.filterwarnings("ignore", ".*your dataloader is.not resumable.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    data = TensorDataset(x, y, torch.arange(len(y)))  # (x, y, id)

    scorer = train_scorer(x, y)
    scores = F.cross_entropy(scorer(x), y, reduction="none").detach()  # how hard each sample is: its loss
    order = curriculum.easy_first(scores, seed=0)
    pace = partial(pacing.linear, initial_size=0.2, final_iteration=0.5, total_iterations=STEPS, dataset_size=len(y))
    lessons = sampler.lessons(order, sampler.tabulate(pace, STEPS), torch.tensor(0))
    weights = 1 / (1 + scores)

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = train(Net(weights), Digits(data, lessons), one)
        crashed = Net(weights)
        with suppress(Crash):
            train(crashed, Digits(data, lessons), two, Crashing())
        (checkpoint,) = Path(two).glob("*.ckpt")
        resumed = train(Net(weights), Digits(data, lessons), two, checkpoint=checkpoint)

    asked, _ = sampler.ahead(sampler.start(lessons), torch.tensor(0), lessons, steps=STEPS, batch_size=BATCH)
    assert whole.seen == asked.tolist(), "the order trained on is the order asked for"
    assert crashed.seen == whole.seen[:CRASH] and resumed.seen == whole.seen[SAVE:], "also after a crash"
    place = sampler.seek(lessons, SAVE, batch_size=BATCH)
    assert 0 < place.position < place.size and SAVE % EPOCH, "in the middle of a pass, and of an epoch"
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "and the weights are the same, bit for bit"
    accuracy = (whole.layers(x).argmax(-1) == y).float().mean()
    print(f"{len(whole.seen)} batches of {BATCH}, each as asked for; {accuracy:.0%} of the digits are known")
    print(f"crashed after {CRASH} batches, continued from {SAVE}: the order and the weights are the same")


def train_scorer(x, y):
    torch.manual_seed(0)
    scorer = torch.nn.Linear(64, 10)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(scorer(x), y).backward()
        optimizer.step()
    return scorer


if __name__ == "__main__":
    main()
