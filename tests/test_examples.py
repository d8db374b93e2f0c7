"""The examples are programs that prove what they show: each is run as a newcomer would run it."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch

from fcurr import sampler
from fcurr.loading import CurriculumBatchSampler, CurriculumSampler

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(*command, cwd) -> str:
    """What a program prints; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_run_by_a_test_of_its_own():
    plain = {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("bilevel_")}
    assert plain == {  # those of many levels: test_bilevel_examples.py
        "plain_loop.py",
        "with_lightning.py",
        "with_transformers.py",
    }


def test_a_plain_loop_trains_in_the_order_asked_for_and_resumes_in_a_pass(tmp_path):
    pytest.importorskip("sklearn")
    said = output(EXAMPLES / "plain_loop.py", cwd=tmp_path)
    assert "80 batches of 64, each as asked for" in said and "same weights" in said and not list(tmp_path.iterdir())


@pytest.mark.long
def test_lightning_trains_in_the_order_asked_for_and_resumes_in_a_pass(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("lightning")
    said = output(EXAMPLES / "with_lightning.py", cwd=tmp_path)
    assert "60 batches of 64, each as asked for" in said and "the order and the weights are the same" in said


@pytest.mark.long
def test_transformers_trains_in_the_order_asked_for_and_resumes_in_a_pass(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("transformers")
    said = output(EXAMPLES / "with_transformers.py", cwd=tmp_path)
    assert (
        "60 batches of 64, each as asked for" in said and "in two ways: the order and the weights are the same" in said
    )


def lessons() -> sampler.Lessons:
    return sampler.lessons(torch.arange(30), torch.tensor([10, 20, 30]), torch.tensor(0))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_accelerate_deals_a_batch_of_all_processes_out_as_the_ranks_share_it(processes):
    """Both of accelerate's ways, which the Trainer uses as well: a whole batch split, and small ones in turn."""
    shard = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    batches = partial(CurriculumBatchSampler, lessons(), batch_size=12, total_iterations=7)
    for rank in range(processes):
        own = list(batches(replicas=processes, rank=rank))
        split = shard(batches(), num_processes=processes, process_index=rank, split_batches=True)
        assert len(split) == 7 and list(split) == own
        ids = CurriculumSampler(lessons(), batch_size=12, total_iterations=7)
        small = torch.utils.data.BatchSampler(ids, 12 // processes, drop_last=False)
        assert list(shard(small, num_processes=processes, process_index=rank)) == own


UNDER_TWO_PROCESSES = """
import json, sys
import lightning, torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset
from fcurr import sampler
from fcurr.loading import CurriculumSampler
import with_lightning

class Write(Callback):
    def on_train_end(self, trainer, net):
        with open(f"{trainer.global_rank}.json", "w") as file:
            json.dump(net.seen, file)

class BySample(with_lightning.Digits):
    def train_dataloader(self):
        drawing = CurriculumSampler(self.lessons, batch_size=64, total_iterations=60, replicas=2,
                                    rank=self.trainer.global_rank)
        return DataLoader(self.data, sampler=drawing, batch_size=32)

data = TensorDataset(torch.rand(300, 64), torch.arange(300) % 10, torch.arange(300))
lessons = sampler.lessons(torch.arange(300), torch.tensor([100, 200, 300]), torch.tensor(0))
module, epochs, replace = {"own": (with_lightning.Digits, 3, False), "replaced": (BySample, 1, True)}[sys.argv[1]]
trainer = lightning.Trainer(max_epochs=epochs, strategy="ddp_fork", devices=2, accelerator="cpu", logger=False,
                            use_distributed_sampler=replace, callbacks=[Write()], enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False)
trainer.fit(with_lightning.Net(torch.ones(300)), module(data, lessons))
asked, _ = sampler.ahead(sampler.start(lessons), torch.tensor(0), lessons, steps=60, batch_size=64)
with open("asked.json", "w") as file:
    json.dump(asked.tolist(), file)
"""


@pytest.mark.long
@pytest.mark.parametrize("way, kept", [("own", True), ("replaced", False)])
def test_lightning_under_two_processes_keeps_the_order_only_if_it_must_not_replace_the_sampler(tmp_path, way, kept):
    pytest.importorskip("sklearn")
    pytest.importorskip("lightning")
    (tmp_path / "program.py").write_text(UNDER_TWO_PROCESSES)
    output(tmp_path / "program.py", way, cwd=tmp_path)
    first, second, asked = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "asked"))
    together = [list(chain(*parts)) for parts in zip(first, second, strict=True)]
    assert (together == asked) == kept
