"""The race check finds each wait that is missing, in every order, and nothing where none is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from tests.emulated import accelerator
from tests.emulated.accelerator import ORDERS, Order

N = 1 << 12
STEPS = 4
WAITS = ("for loads", "before loads", "before stores", "for stores")


class CopyLoop:
    """Values from pinned memory to the device, doubled there, and back: each direction on a stream of its own.

    Memory of the loaded values and of the results is the default stream's, and is used again by the next step.
    """

    def __init__(self, without: str = "", keep: bool = False) -> None:
        self.without = without
        self.keep = keep  # results by record_stream, in place of a wait for stores
        self.loads, self.stores = torch.Stream("emu"), torch.Stream("emu")
        self.sources = [torch.full((N,), float(i)).pin_memory() for i in range(STEPS)]
        self.targets = [torch.zeros(N).pin_memory() for _ in range(STEPS)]

    def _wait(self, name: str, waiting: torch.Stream, other: torch.Stream) -> None:
        if name != self.without:
            waiting.wait_stream(other)

    @contextlib.contextmanager
    def _beside(self, name: str, stream: torch.Stream) -> Iterator[None]:
        self._wait(name, stream, torch.accelerator.current_stream())
        with stream:
            yield

    def run(self) -> bool:
        """Whether the results are right."""
        main = torch.accelerator.current_stream()
        for source, target in zip(self.sources, self.targets, strict=True):
            loaded = torch.empty(N, device="emu")
            with self._beside("before loads", self.loads):
                loaded.copy_(source, non_blocking=True)
            self._wait("for loads", main, self.loads)
            result = loaded * 2
            with self._beside("before stores", self.stores):
                target.copy_(result, non_blocking=True)
            if self.keep:
                if self.without != "record_stream":
                    result.record_stream(self.stores)
            else:
                self._wait("for stores", main, self.stores)
            del loaded, result
        torch.accelerator.synchronize()
        return all(bool((target == 2 * i).all()) for i, target in enumerate(self.targets))


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_a_loop_with_all_waits_has_no_race(order: Order, poison: bool) -> None:
    accelerator.configure(order=order, poison=poison, races="raise")
    assert CopyLoop().run()
    assert CopyLoop(keep=True).run()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wait", WAITS)
def test_a_missing_wait_is_found(wait: str, order: Order) -> None:
    accelerator.configure(order=order, races="collect")
    CopyLoop(without=wait).run()
    assert accelerator.races()


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_record_stream_is_found(order: Order) -> None:
    accelerator.configure(order=order, races="collect")
    CopyLoop(without="record_stream", keep=True).run()
    assert accelerator.races()


@pytest.mark.parametrize("wait", WAITS)
def test_a_missing_wait_gives_a_wrong_result_in_one_of_the_orders(wait: str) -> None:
    right = []
    for order in ("side-last", "side-first"):
        accelerator.configure(order=order, races="ignore", poison=True)
        right.append(CopyLoop(without=wait).run())
    assert not all(right)


def test_a_race_names_both_kernels_and_both_streams() -> None:
    accelerator.configure(races="collect")
    x = torch.zeros(N, device="emu")
    side = torch.Stream("emu")
    with side:
        y = x + 1
    main = torch.accelerator.current_stream().stream_id
    assert accelerator.races() == [
        f"aten::add on stream {side.stream_id} reads what aten::zero_ on stream {main} writes, and no wait orders them"
    ]
    accelerator.configure(races="raise")
    x.zero_()
    message = f"race: aten::mul on stream {side.stream_id} reads what aten::zero_ on stream {main} writes"
    with pytest.raises(RuntimeError, match=message), side:
        x.mul_(2)
    torch.accelerator.synchronize()
    del y


def test_two_readers_are_no_race_nor_are_two_parts_of_a_tensor() -> None:
    x = torch.zeros(2, N, device="emu")
    side = torch.Stream("emu")
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        first = x + 1
    second = x + 2
    torch.accelerator.synchronize()
    with side:
        x[0].add_(1)
    x[1].add_(1)
    torch.accelerator.synchronize()
    assert (x[:, 0].sum() + first[0, 0] + second[0, 0]).item() == 5


@pytest.mark.parametrize("how", ["device", "stream", "event"])
def test_what_the_host_has_waited_for_is_ordered(how: str) -> None:
    x = torch.zeros(N, device="emu")
    side, event = torch.Stream("emu"), torch.Event("emu")
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        x.add_(1)
        event.record()
    {"device": torch.accelerator.synchronize, "stream": side.synchronize, "event": event.synchronize}[how]()
    assert (x + 1)[0].item() == 2


def test_a_retry_of_the_allocator_orders_nothing() -> None:
    """It has to wait for the device, but no program may count on that."""
    accelerator.configure(capacity=30 << 20, races="collect")
    x = torch.zeros(N, device="emu")
    side = torch.Stream("emu")
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        x.add_(1)
    torch.empty(28 << 20, dtype=torch.uint8, device="emu")
    assert x[0].item() == 1
    assert accelerator.races()


def test_the_host_reads_a_result_before_it_has_waited_for_the_copy() -> None:
    accelerator.configure(races="collect")
    target = torch.zeros(N).pin_memory()
    target.copy_(torch.ones(N, device="emu"), non_blocking=True)
    accelerator.host_reads(target)
    assert "copy to host" in accelerator.races()[0]
    accelerator.configure(races="raise")
    target.copy_(torch.ones(N, device="emu"), non_blocking=True)
    torch.accelerator.synchronize()
    accelerator.host_reads(target)
