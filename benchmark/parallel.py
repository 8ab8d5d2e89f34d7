"""Work over images in several processes, with the results in order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from seedbed.benchmark.plugins import as_text, give

Item = TypeVar("Item")
Result = TypeVar("Result")
TaskMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Takes a function and items, as the built-in `map`."""


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items.

    With `processes` of at most 1 everything runs here. At most a few items a process are under way, so
    `items` may be a generator of large arrays. `function` must be importable by name. An error of `function`
    is raised here; items that have not been started are dropped.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    pool = _executor(processes)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def task_map(processes: int) -> Iterator[TaskMap]:
    """Give a `map` whose processes live as long as the context: for little work many times.

    With `processes` of at most 1 it is the built-in `map`. Otherwise all items start at once, while the caller
    continues, and the results come in the order of the items. Functions must be importable by name.
    """
    if processes <= 1:
        yield map
        return
    pool = _executor(processes)
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _executor(processes: int) -> ProcessPoolExecutor:
    # Not `fork`: a forked child could deadlock on torch's locks. Children have the server's first variables.
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=give,
        initargs=(as_text(),),
    )
