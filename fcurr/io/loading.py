"""Reading while computing."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from torch import Tensor

from fcurr.types import Batch, Times


def ahead(take: Callable[[Tensor], Batch], ids: Iterable[Tensor], *, depth: Times = 2) -> Generator[Batch, None, None]:
    """The batches of map(take, ids), in the same order; while one is used, the next `depth` are fetched by threads.

    `ids` [step, ..., batch], or any iterable of ids. Nothing is fetched before the first batch is asked for. What a
    fetch raises is raised where its batch belongs, after all batches before it. Closing the iterator, or its end, waits
    for the fetches that have begun, and begins no more. `take` is called from several threads.
    """
    rest = iter(ids)
    with _Pool(depth) as pool:
        waiting: deque[Future[Batch]] = deque(pool.submit(take, one) for one in islice(rest, depth))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(take, one) for one in islice(rest, 1))
            yield batch
            del batch


class _Pool(ThreadPoolExecutor):
    """Threads that, once left, begin nothing more."""

    def __exit__(self, *raised: Any) -> None:
        self.shutdown(wait=True, cancel_futures=True)
