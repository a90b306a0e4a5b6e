"""A second call of a model without a second trace: what it computes is looked up in what the first one did.

While a model is traced, every function of torch that its code calls is recorded: which, with what, what came out, and
what of torch's own state has a say in that. A rehearsal runs the code again, from the state that the first call has
left, and computes nothing: as long as it calls the same functions with the same values in the same order, it is given
results of the same layout. Where that holds to the end, the second call is the first one's graph.

Only a call that can be told in full is rehearsed. Anything else (autocast, an operator that no function of torch
leads to, a value that is neither tensor nor number) is left to a second trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.export._trace as export_trace
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import snapshot_fake
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from sicompiler.capture.functions import Unlike, depths, is_torchs, key_of, state_of
from sicompiler.capture.results import Opened

_EFFECTS = (torch._C._set_grad_enabled,)  # what is done in a rehearsal too


@dataclass(frozen=True)
class _FunctionCall:
    """One call of a function of torch.

    Attributes:
        func: the function.
        key: its arguments, tensors by number.
        state: what of torch has a say.
        result: what it gave.
    """

    func: Any
    key: Any
    state: tuple[Any, ...]
    result: Any


class Score:
    """What the first call of a model did.

    Attributes:
        steps: functions of torch, in order.
        is_whole: whether all of it could be told.
        result: what the call gave.
        inputs: what the call was given, flat, and how it was put together: a call may change what it is given.
        tensors: all that were met, by number; each with its layout when it was first met.
        made: numbers of those that a function gave.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], inputs: Any) -> None:
        self.steps: list[_FunctionCall] = []
        self.is_whole = True
        self.result: Any = None
        self.inputs = pytree.tree_flatten(inputs)
        self.tensors: list[tuple[torch.Tensor, Any]] = []
        self.made = set[int]()
        self._numbers: dict[int, int] = {}
        self.weights = {name: self.number(tensor) for name, tensor in weights.items()}
        for tensor in self.inputs[0]:
            if isinstance(tensor, torch.Tensor):
                self.number(tensor)
        self._given = len(self.tensors)

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor, which is kept."""
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self.tensors)
            with torch._C.DisableTorchFunction():
                self.tensors.append((tensor, _layout(tensor)))
        return number

    def record(self, func: Any, args: Any, kwargs: Any, call: Callable[[], Any], state: tuple[Any, ...]) -> Any:
        """Call a function and write down what it did."""
        if not self.is_whole:
            return call()
        try:
            key = key_of((args, kwargs), self.number)
        except Unlike:
            self.is_whole = False
            return call()
        self.is_whole = False  # as long as nobody knows that no error ends it halfway
        result = call()
        before = len(self.tensors)
        try:
            key_of(None if func in _EFFECTS else result, self.number)
            self.is_whole = is_torchs(func) and not state[-1]
        except Unlike:
            pass
        self.made.update(range(before, len(self.tensors)))
        self.steps.append(_FunctionCall(func, key, state, _mapped(lambda tensor: tensor, result)))
        return result

    def others(self) -> dict[int, int]:
        """The numbers of tensors that neither are weights or inputs nor come from a function, by id."""
        numbers = enumerate(self.tensors)
        return {id(tensor): n for n, (tensor, _) in numbers if n >= self._given and n not in self.made}


class _Counting(TorchFunctionMode):
    """Knows how many modes were on when it was entered."""

    def __enter__(self) -> Self:
        """Enter."""
        self._depths = depths()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


class CallRecorder(_Counting):
    """Writes down what functions of torch do.

    Args:
        score: where to.
        run: calls a function, given its arguments.
    """

    def __init__(self, score: Score, run: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self._score, self._run = score, run

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call it."""
        kwargs = kwargs or {}
        return self._score.record(func, args, kwargs, lambda: self._run(func, args, kwargs), state_of(self._depths))


class _Player(_Counting):
    """Gives what the first call was given, as long as the same is asked."""

    def __init__(self, score: Score, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._score = score
        self._stand_ins = {number: weights[name] for name, number in score.weights.items()}
        self._numbers = score.others() | {id(tensor): number for number, tensor in self._stand_ins.items()}
        self._next = 0
        self.failed = False

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is given in the place of a tensor of the first call: another one of its layout."""
        number = self._score.number(tensor)
        if number not in self._stand_ins:
            if type(tensor) is not FakeTensor or _layout(tensor) != self._score.tensors[number][1]:
                raise Unlike(f"a {type(tensor).__name__} that was changed")
            made = snapshot_fake(tensor)
            assert made is not None
            self._stand_ins[number], self._numbers[id(made)] = made, number
        return self._stand_ins[number]

    def number(self, tensor: torch.Tensor) -> int:
        """The number of the tensor of the first call that one of this call stands for."""
        if id(tensor) not in self._numbers:
            raise Unlike("another tensor")
        return self._numbers[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Give what it gave."""
        if self.failed:  # caught by the model's own code
            raise Unlike("another call before")
        self.failed = True
        if self._next == len(self._score.steps):
            raise Unlike("one call more")
        step = self._score.steps[self._next]
        state = state_of(self._depths)
        if step.func != func or step.state != state or step.key != key_of((args, kwargs or {}), self.number):
            raise Unlike("another call")
        self._next, self.failed = self._next + 1, False
        if func in _EFFECTS:
            return func(*args)
        return _mapped(self._given, step.result)

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        number = self._score.number(tensor)
        return self.stand_in(tensor) if number in self._score.made or number in self._stand_ins else tensor

    def check_end(self, result: Any) -> None:
        """Refuse a call that has done less, or gives something else."""
        if self.failed or self._next != len(self._score.steps):
            raise Unlike("fewer calls")
        (ours, kind), (theirs, other) = (
            pytree.tree_flatten(found, is_leaf=_is_opened) for found in (result, self._score.result)
        )
        if kind != other or key_of(ours, self.number) != key_of(theirs, self._score.number):
            raise Unlike("another result")


class _NoOperators(TorchDispatchMode):
    """Refuses operators that no function of torch has led to."""

    def __init__(self, player: _Player) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._player = player

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._player.failed = True
        raise Unlike(f"{func} is called by itself")


def rehearse(score: Score, weights: Mapping[str, torch.Tensor], call: Callable[..., Any]) -> bool:
    """Whether one more call does the same as the first one.

    Args:
        score: of the first call.
        weights: of the model by name.
        call: takes what the first call was given.
    """
    leaves, form = score.inputs
    modes = [leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor)]
    if not score.is_whole or not modes:
        return False
    grad = torch.is_grad_enabled()
    try:
        player = _Player(score, weights)
        args, kwargs = pytree.tree_unflatten(
            [player.stand_in(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], form
        )
        with compiling_state(), modes[0], _NoOperators(player), player:
            result = call(*args, **kwargs)
        player.check_end(result)
    except Exception:  # the second trace tells what is wrong
        return False
    finally:
        torch._C._set_grad_enabled(grad)
    return True


def _is_opened(value: object) -> bool:
    return isinstance(value, Opened)


def compiling_state() -> contextlib.AbstractContextManager[None]:
    """Have code be told that it is exported, as in a trace of torch."""
    context: Callable[[], contextlib.AbstractContextManager[None]]
    context = getattr(export_trace, "_compiling_state_context", contextlib.nullcontext)
    return context()


def is_recording() -> bool:
    """Whether the code that runs is the model's own, recorded or rehearsed, and none of torch's around it."""
    return any(isinstance(mode, _Counting) for mode in _get_current_function_mode_stack())


def _mapped(change: Callable[[torch.Tensor], torch.Tensor], result: Any) -> Any:
    """What a function gave with other tensors, in containers of its own: a model may write into those it is given."""
    if isinstance(result, torch.Tensor):
        return change(result)
    return pytree.tree_map_only(torch.Tensor, change, result)


def _layout(tensor: torch.Tensor) -> Any:
    return tensor.shape, tensor.stride() if tensor.layout is torch.strided else None, tensor.dtype
