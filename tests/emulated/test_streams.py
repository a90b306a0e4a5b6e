"""Streams, events and copies: what runs when, and what memory waits for."""

from __future__ import annotations

import pytest
import torch

from tests.emulated import accelerator
from tests.emulated.accelerator import ORDERS, Order

N = 1 << 16
LAZY = ORDERS[1:]


def _current() -> torch.Stream:
    return torch.accelerator.current_stream()


def test_sync_runs_at_once_and_lazy_when_the_host_waits() -> None:
    x = torch.ones(N, device="emu")
    assert accelerator.queued() == 0
    accelerator.configure(order="side-last")
    y = x + 1
    assert accelerator.queued() == 1
    assert y[0].item() == 2
    assert accelerator.queued() == 0


@pytest.mark.parametrize("order", LAZY)
def test_a_stream_runs_in_its_own_order(order: Order) -> None:
    accelerator.configure(order=order)
    x = torch.ones(N, device="emu")
    for _ in range(5):
        x.mul_(2).add_(1)
    assert x[0].item() == 63


@pytest.mark.parametrize(("order", "expected"), [("side-last", 1.0), ("side-first", 2.0)])
def test_unordered_streams_run_in_the_order_that_was_set(order: Order, expected: float) -> None:
    x = torch.zeros(N, device="emu")
    accelerator.configure(order=order, races="ignore")
    side = torch.Stream("emu")
    with side:
        x.fill_(1)
    x.fill_(2)
    torch.accelerator.synchronize()
    assert x[0].item() == expected


@pytest.mark.parametrize("order", ORDERS)
def test_a_wait_orders_two_streams(order: Order) -> None:
    accelerator.configure(order=order)
    x = torch.zeros(N, device="emu")
    side = torch.Stream("emu")
    side.wait_stream(_current())
    with side:
        assert _current().stream_id == side.stream_id
        x.fill_(1)
    _current().wait_stream(side)
    assert (x + 1)[0].item() == 2


def test_an_event_is_done_when_its_stream_gets_there() -> None:
    accelerator.configure(order="side-last")
    side = torch.Stream("emu")
    first, second = torch.Event("emu", enable_timing=True), torch.Event("emu", enable_timing=True)
    assert first.query()  # never recorded
    with side:
        first.record()
        x = torch.ones(N, device="emu") + 1
        second.record()
    assert accelerator.queued() == 4
    first.synchronize()
    assert first.query()
    assert accelerator.queued() == 3
    second.synchronize()
    assert first.elapsed_time(second) >= 0
    x.record_stream(_current())


def test_a_wait_is_for_the_last_record_before_it() -> None:
    accelerator.configure(order="side-last")
    side, event = torch.Stream("emu"), torch.Event("emu")
    x, y = torch.zeros(N, device="emu"), torch.zeros(N, device="emu")
    torch.accelerator.synchronize()
    with side:
        x.fill_(1)
        event.record()
    _current().wait_event(event)
    with side:
        y.fill_(1)
        event.record()
    _current().synchronize()
    assert accelerator.queued() > 0  # `y` and the second record: nobody waited for them
    torch.accelerator.synchronize()


def test_polling_gets_there() -> None:
    accelerator.configure(order="side-last")
    event = torch.Event("emu")
    x = torch.ones(N, device="emu")
    event.record()
    polls = 0
    while not event.query():
        polls += 1
    assert 0 < polls < 3
    del x


def test_an_error_in_a_queued_kernel_is_raised_where_the_host_waits() -> None:
    accelerator.configure(order="side-last")
    index = torch.tensor([5], device="emu")
    result = torch.ones(3, device="emu")[index]
    with pytest.raises(IndexError):
        torch.accelerator.synchronize()
    torch.accelerator.synchronize()
    del result


def test_copies_from_and_to_pinned_memory_take_their_time_and_others_do_not() -> None:
    accelerator.configure(order="side-last")
    device = torch.ones(N, device="emu")
    torch.accelerator.synchronize()
    pinned, pageable = torch.zeros(N).pin_memory(), torch.zeros(N)
    pinned.copy_(device, non_blocking=True)
    assert pinned[0].item() == 0
    torch.accelerator.synchronize()
    assert pinned[0].item() == 1
    pageable.copy_(device, non_blocking=True)
    assert pageable[0].item() == 1
    pinned.fill_(2)
    device.copy_(pinned)
    pinned.fill_(3)
    assert device[0].item() == 2
    device.copy_(pinned, non_blocking=True)
    pinned.fill_(4)  # too early: the copy has not read it
    assert device[0].item() == 4


@pytest.mark.parametrize("order", LAZY)
def test_pinned_memory_freed_while_it_is_copied_is_kept(order: Order) -> None:
    accelerator.configure(order=order)
    host = torch.ones(N).pin_memory()
    device = host.to("emu", non_blocking=True)
    del host
    other = torch.empty(N, pin_memory=True).fill_(7)
    assert device[0].item() == 1
    assert other[0].item() == 7


@pytest.mark.parametrize("recorded", [True, False])
def test_record_stream_keeps_a_block_from_its_next_user(recorded: bool) -> None:
    accelerator.configure(order="side-last", races="collect")
    host = torch.empty(N, pin_memory=True)
    side = torch.Stream("emu")
    first = torch.ones(N, device="emu")
    address = first.data_ptr()
    side.wait_stream(_current())
    with side:
        host.copy_(first, non_blocking=True)
    if recorded:
        first.record_stream(side)
    del first
    second = torch.full((N,), 7.0, device="emu")
    assert (second.data_ptr() == address) != recorded
    torch.accelerator.synchronize()
    assert host[0].item() == (1 if recorded else 7)
    assert bool(accelerator.races()) != recorded


def test_a_recorded_block_is_free_once_its_streams_got_there() -> None:
    accelerator.configure(order="side-last")
    side = torch.Stream("emu")
    first = torch.ones(N, device="emu")
    address = first.data_ptr()
    side.wait_stream(_current())
    with side:
        doubled = first * 2
    first.record_stream(side)
    del first
    stats = torch.accelerator.memory_stats()
    assert stats["active_bytes.all.current"] == 2 * 4 * N
    assert stats["allocated_bytes.all.current"] == 4 * N
    torch.accelerator.synchronize()
    assert torch.ones(N, device="emu").data_ptr() == address
    assert doubled[0].item() == 2


@pytest.mark.parametrize("order", ORDERS)
def test_poison_shows_memory_that_was_not_written(order: Order) -> None:
    accelerator.configure(order=order, poison=True)
    assert torch.empty(4, device="emu").isnan().all().item()
    x = torch.ones(4, device="emu")
    assert x.sum().item() == 4
