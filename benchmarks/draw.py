"""A batch of 256 from 100 million samples, against a permutation in memory: python benchmarks/draw.py

Prints the time of a draw in milliseconds, its ratio to one indexing of the same size, and the memory that drawing takes
beyond the order itself. The order is 400 MB of int32; a peer that shuffles needs a permutation as large again.
"""

import resource
import time

import torch
from interleave import quiet, ratios, show

from fcurr import rng, sampler

SAMPLES, BATCH = 100_000_000, 256


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the bytes of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.total += made.untyped_storage().nbytes() if made._base is None and not made._is_view() else 0
        return made


def main() -> None:
    quiet()
    order = torch.arange(SAMPLES, dtype=torch.int32).flip(0)
    sizes = torch.tensor([SAMPLES // 2, SAMPLES])
    lessons = sampler.lessons(order, sizes, rng.fold(0, 1))
    cursor = sampler.start(lessons)
    step = torch.tensor(5)

    def draw():
        return sampler.draw(cursor, step, lessons, batch_size=BATCH)

    some = torch.randint(0, SAMPLES, (BATCH,))
    draw()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    with Largest() as made:
        draw()
    milliseconds = 1e3 * sorted(times)[len(times) // 2]
    show("Drawing 256 of 100 million", ratios({"order[256 random places]": lambda: order[some], "fcurr draw": draw}))
    print(f"\nmedian of one draw: {milliseconds:.2f} ms (target: at most 1)")
    shared = lessons.orders.untyped_storage().nbytes()
    made_mib = (made.total - shared * (made.total // shared)) / 2**20
    print(
        f"all tensors one draw makes, together: {made_mib:.2f} MiB; resident memory grew by {grown:.2f} MiB (target: 1)"
    )


if __name__ == "__main__":
    main()
