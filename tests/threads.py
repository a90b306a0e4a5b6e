"""Threads in tests: what one of them raises fails the test, and one that hangs does not hang the run."""

from __future__ import annotations

import threading
from collections.abc import Callable

SECONDS = 120


def in_threads(work: Callable[[int], None], count: int = 2) -> None:
    """Run a function in threads at once.

    Args:
        work: given the number of its thread.
        count: of threads.

    Raises:
        AssertionError: one of them did not end.
    """
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
