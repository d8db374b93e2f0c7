"""The training loop of a run against other trainers': python benchmarks/peers.py

The same data (digits), perceptron (64-256-10), batch (64) and SGD with momentum; an evaluation a pass. Starting up is
not counted: of Lightning, from the start of training to its end; of autrainer, its loop alone, on samples in memory.
Peers that are not installed have no row: pip install lightning autrainer (which brings torchvision and torchaudio; they
must be built for the torch that is there, for processors or for CUDA alike).
"""

import copy
import importlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from interleave import network, quiet
from loop import BATCH, MOMENTUM, RATE, Whole, by_passes, flat
from torch import Tensor, nn
from torch.utils import data as torch_data

PASSES, ROUNDS = 40, 9
Way = Callable[[], float]  # seconds of the processor, a step


def ours(run: Whole) -> Way:
    def go() -> float:
        began = time.process_time()
        run.go()
        return (time.process_time() - began) / run.steps

    return go


def lightning(run: Whole, folder: Path) -> dict[str, Way]:
    """As quiet as it can be asked to be, the same with batches that are indexed at once, and as it comes."""
    pl: Any = importlib.import_module("lightning")
    start, loss_of, (x, y, held_x, held_y) = network(), nn.CrossEntropyLoss(), tensors(run)

    class Task(pl.LightningModule):
        def __init__(self, logs: bool) -> None:
            super().__init__()
            self.net, self.logs, self.kept = copy.deepcopy(start), logs, []

        def training_step(self, batch: Any, number: int) -> Tensor:
            loss = loss_of(self.net(batch[0]), batch[1])
            self.say("loss", loss)
            return loss

        def validation_step(self, batch: Any, number: int) -> None:
            outputs = self.net(batch[0])
            self.say("validation_loss", loss_of(outputs, batch[1]))
            self.say("validation_accuracy", (outputs.argmax(1) == batch[1]).double().mean())

        def say(self, name: str, value: Tensor) -> None:
            if self.logs:
                self.log(name, value)
            else:
                self.kept.append(value.item())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)

    class Clock(pl.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.began = time.process_time()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.took = time.process_time() - self.began

    samples = torch_data.TensorDataset(x, y)
    one_by_one = torch_data.DataLoader(samples, batch_size=BATCH, shuffle=True)
    drawn = torch_data.BatchSampler(torch_data.RandomSampler(samples), BATCH, drop_last=False)
    at_once = torch_data.DataLoader(samples, sampler=drawn, batch_size=None)
    held = torch_data.DataLoader(torch_data.TensorDataset(held_x, held_y), batch_size=len(held_y))
    off = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }

    def way(loader: Any, **options: Any) -> Way:
        def go() -> float:
            clock = Clock()
            trainer = pl.Trainer(
                max_epochs=PASSES,
                accelerator="cpu",
                devices=1,
                callbacks=[clock],
                default_root_dir=folder / "lightning",
                **options,
            )
            trainer.fit(Task(logs=not options), loader, held)
            return clock.took / trainer.global_step

        return go

    return {
        "Lightning, logger, checkpoints and progress bar off": way(one_by_one, **off),
        "Lightning, the same, a batch indexed at once": way(at_once, **off),
        "Lightning as it comes": way(one_by_one),
    }


class Rows(torch_data.Dataset):
    """Samples in memory, as autrainer's items."""

    def __init__(self, item: Callable[..., Any], x: Tensor, y: Tensor) -> None:
        self.item, self.x, self.y = item, list(x), y.tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return self.item(features=self.x[index], target=self.y[index], index=index)


def autrainer(run: Whole, folder: Path) -> dict[str, Way]:
    """Its own trainer, its tabular toy data set with digits in the place of the random samples."""
    trainers: Any = importlib.import_module("autrainer.training")
    structs: Any = importlib.import_module("autrainer.core.structs")
    omegaconf: Any = importlib.import_module("omegaconf")
    x, y, held_x, held_y = tensors(run)
    config = {
        "seed": 0,
        "device": "cpu",
        "reproducible": False,
        "training_type": "epoch",
        "iterations": PASSES,
        "eval_frequency": 1,
        "save_frequency": PASSES,
        "batch_size": BATCH,
        "inference_batch_size": len(held_y),
        "learning_rate": RATE,
        "dataset": {
            "_target_": "autrainer.datasets.ToyDataset",
            "task": "classification",
            "size": 1797,
            "num_targets": 10,
            "feature_shape": 64,
            "dev_split": 0.15,
            "test_split": 0.25,
            "criterion": "torch.nn.CrossEntropyLoss",
            "metrics": ["autrainer.metrics.Accuracy"],
            "tracking_metric": "autrainer.metrics.Accuracy",
            "transform": {"type": "tabular"},
        },
        "model": {
            "id": "FFNN",
            "_target_": "autrainer.models.FFNN",
            "input_size": 64,
            "hidden_size": 256,
            "dropout": 0.0,
            "transform": {"type": "tabular"},
        },
        "optimizer": {"id": "SGD", "_target_": "torch.optim.SGD", "momentum": MOMENTUM, "fused": True},
        "scheduler": {"id": "None"},
        "augmentation": None,
        "save_train_outputs": False,
        "save_dev_outputs": False,
        "save_test_outputs": False,
        "plotting": {
            "figsize": [1, 1],
            "latex": False,
            "filetypes": ["png"],
            "pickle": False,
            "context": "notebook",
            "palette": "colorblind",
            "replace_none": False,
            "add_titles": False,
            "add_xlabels": False,
            "add_ylabels": False,
            "rcParams": {},
        },
    }
    trainer = trainers.ModularTaskTrainer(omegaconf.OmegaConf.create(config), str(folder / "autrainer"))
    trainer._thread_manager.join()
    trainer.train_step_fn = trainer._train_step
    trainer.model.Dropout0 = nn.Identity()
    loaders = trainer.data.__dict__  # where its cached properties are
    loaders["train_dataset"], loaders["dev_dataset"] = (
        Rows(structs.DataItem, x, y),
        Rows(structs.DataItem, held_x, held_y),
    )
    trainer.train_loader = trainer.data.create_train_loader(batch_size=BATCH)
    trainer.dev_loader = trainer.data.create_dev_loader(batch_size=len(held_y))

    def go() -> float:
        began = time.process_time()
        trainer.train_epochs()
        return (time.process_time() - began) / (PASSES * len(trainer.train_loader))

    return {"autrainer": go}


def tensors(run: Whole) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of training x, y and of validation x, y."""
    return *flat(run.program.data), *flat(run.validation)


def main() -> None:
    quiet()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()), redirect_stdout(StringIO()) as out:
        (folder := Path(name, "run")).mkdir()
        run = by_passes(folder, 1, PASSES)
        ways, missing = {"fcurr": ours(run)}, []
        for peer in (lightning, autrainer):
            try:
                importlib.import_module(peer.__name__)
            except ImportError:
                missing.append(peer.__name__)
                continue
            ways |= peer(run, Path(name))
        logging.disable(logging.CRITICAL)
        found: dict[str, list[float]] = {key: [] for key in ways}
        for place in range(ROUNDS + 1):
            for key, way in ways.items():
                took = way()
                if place:  # the first is for warming up
                    found[key].append(took)
        out.truncate(0)
    if missing:
        print(f"\nNot installed, and not measured: pip install {' '.join(missing)}")
    if len(ways) == 1:
        return
    print(f"\nSteps per second of fcurr's loop, of a peer's (target: at least 3); {run.steps} steps a round\n")
    print("| peer | median (quartiles) |\n|---|---|")
    for key in list(ways)[1:]:
        ratio = [b / a for a, b in zip(found["fcurr"], found[key], strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        print(f"| {key} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
