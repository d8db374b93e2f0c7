"""transformers' Trainer in the order of a curriculum: crashed in the middle of a pass, continued from a checkpoint.

    pip install transformers accelerate
    python examples/with_transformers.py

Shows that the samples the Trainer trains on are, step by step, the samples that the curriculum draws, before a crash
and after `train(resume_from_checkpoint=...)`, and that the weights at the end are those of the run that did not crash,
bit for bit. The Trainer can be continued in two ways, and both are tried here.
"""

import tempfile
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainerCallback, TrainingArguments

from fcurr import curriculum, pacing, sampler
from fcurr.loading import CurriculumSampler, weighted_mean

STEPS, MICRO, ACCUMULATE = 60, 32, 2  # a step of the optimizer is two batches of 32
BATCH = MICRO * ACCUMULATE
SAVE, CRASH = 27, 31


class Digits(Dataset):
    """What the Trainer wants, and the id of each sample."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {"pixel_values": self.x[index], "labels": self.y[index], "id": index}


class CurriculumTrainer(Trainer):
    """The Trainer shuffles unless it is given a sampler. This one is in steps of the optimizer: a step is a batch of
    all processes and of all accumulated batches, so a step of the curriculum is the Trainer's `global_step`. It draws
    for all processes (replicas is 1): accelerate deals the batches out, process after process, and so each process
    gets its consecutive part."""

    def __init__(self, *args, lessons, weights, **more):
        super().__init__(*args, **more)
        self.lessons, self.weights, self.seen = lessons, weights, []

    def _get_train_sampler(self, train_dataset=None):
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return CurriculumSampler(self.lessons, batch_size=together, total_iterations=self.args.max_steps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs.pop("id")
        self.seen.append(ids.tolist())
        outputs = model(pixel_values=inputs["pixel_values"])
        losses = F.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
        loss = weighted_mean(losses, self.weights[ids])  # in each micro-batch; the Trainer takes the mean of the two
        return (loss, outputs) if return_outputs else loss


class Crash(Exception):
    pass


class Crashing(TrainerCallback):
    """The power fails."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == CRASH:
            raise Crash


class Seeking(TrainerCallback):
    """The other way to continue: the Trainer skips nothing (ignore_data_skip), and the sampler begins at its step."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **_):
        train_dataloader.batch_sampler.sampler.seek(state.global_step)


def model():
    """A tiny convolution network, from its configuration: nothing is downloaded."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10
    )
    return ConvNextForImageClassification(config)


def trainer(data, lessons, weights, folder, *callbacks, **more):
    args = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATE,
        learning_rate=0.01,
        save_steps=SAVE,
        dataloader_num_workers=2,
        remove_unused_columns=False,  # or the ids would be dropped
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        report_to="none",
        **more,
    )
    return CurriculumTrainer(
        model(), args, train_dataset=data, callbacks=list(callbacks), lessons=lessons, weights=weights
    )


def main():
    found = load_digits()
    x, y = torch.tensor(found.images[:, None] / 16, dtype=torch.float32), torch.tensor(found.target)

    scorer = train_scorer(x.flatten(1), y)
    scores = F.cross_entropy(scorer(x.flatten(1)), y, reduction="none").detach()  # how hard each sample is: its loss
    order = curriculum.easy_first(scores, seed=0)
    pace = partial(pacing.linear, initial_size=0.2, final_iteration=0.5, total_iterations=STEPS, dataset_size=len(y))
    lessons = sampler.lessons(order, sampler.tabulate(pace, STEPS), torch.tensor(0))
    made = Digits(x, y), lessons, 1 / (1 + scores)

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = trainer(*made, one)
        whole.train()
        crashed = trainer(*made, two, Crashing())
        with suppress(Crash):
            crashed.train()
        (checkpoint,) = Path(two).glob("checkpoint-*")
        # One way: a new sampler, at its start. The Trainer itself skips what was trained on, by drawing it again.
        # Loading the sampler's state as well would skip twice.
        skipped = trainer(*made, two)
        skipped.train(resume_from_checkpoint=checkpoint)
        # The other way draws nothing again; the Trainer's count of epochs, in its logs, begins anew.
        sought = trainer(*made, two, Seeking(), ignore_data_skip=True)
        sought.train(resume_from_checkpoint=checkpoint)

    asked, _ = sampler.ahead(sampler.start(lessons), torch.tensor(0), lessons, steps=STEPS, batch_size=BATCH)
    asked = asked.tolist()
    assert steps(whole.seen) == asked, "the order trained on is the order asked for"
    assert steps(crashed.seen) == asked[:CRASH], "also until a crash"
    place = sampler.seek(lessons, SAVE, batch_size=BATCH)
    assert 0 < place.position < place.size, "in the middle of a pass"
    for resumed in (skipped, sought):
        assert steps(resumed.seen) == asked[SAVE:], "and after it"
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "and the weights are the same, bit for bit"
    net = whole.accelerator.unwrap_model(whole.model).eval()
    accuracy = (net(pixel_values=x).logits.argmax(-1) == y).float().mean()
    print(f"{len(steps(whole.seen))} batches of {BATCH}, each as asked for; {accuracy:.0%} of the digits are known")
    print(f"crashed after {CRASH} batches, continued from {SAVE} in two ways: the order and the weights are the same")


def steps(seen):
    """The ids of each step of the optimizer."""
    return [list(chain(*seen[at : at + ACCUMULATE])) for at in range(0, len(seen), ACCUMULATE)]


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
