"""What operators ask of the values of tensors, and how a trace answers: one row each.

Answered where no bound serves (`capture.bounded`): a graph that holds for all values is better than one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from sicompiler.capture.decisions import Decide, Decided, DecisionMaker, Finish, numbers_in, outcome_of
from sicompiler.capture.elsewhere import elsewhere
from sicompiler.capture.reasons import line_being_run
from sicompiler.capture.tape import NO_ANSWER, Tape, UnknownOrigin
from sicompiler.errors import CaptureError

aten = torch.ops.aten

MAX_ENTRIES = 2**16  # of a tensor that is read number by number; more are data


class Decides(IntEnum):
    """How much of what is asked is decided by the values of the call that is traced; the rest stays a symbol.

    What is answered by yes or no is decided in any case, as long as there are values.
    """

    NOTHING = 0
    NUMBERS = 1
    SIZES = 2


class NoValues(CaptureError):
    """Something is asked of tensors that have no values: fake ones, or those of the meta device."""


class Decider:
    """Answers what a model asks while it is traced.

    Args:
        decides: how much of it.
        decide: runs a decision.
        tensors: the weights of the live model by name, not those of the trace.
        inputs: of the call, flat.
    """

    def __init__(
        self, decides: Decides, decide: Decide, tensors: Mapping[str, torch.Tensor], inputs: Sequence[Any]
    ) -> None:
        self._decides, self._decide, self._tensors, self._inputs = decides, decide, tensors, inputs
        self.left_open = False  # whether something was asked that stays a symbol
        self.begin({}, ())

    def begin(self, tensors: Mapping[str, torch.Tensor], inputs: Sequence[Any]) -> Tape:
        """Start over with the weights and inputs of a trace."""
        self.tape, self.decided = Tape(self._answer), list[Decided]()
        self._maker = DecisionMaker(self.tape, tensors, inputs)
        self._masks: dict[Hashable, FakeTensor] = {}  # with an open count, by how they were computed
        self._lists: dict[int, tuple[int, list[Any]]] = {}  # by id of a tensor: its entries, and when that was
        return self.tape

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        asked = _QUESTIONS.get(func)
        return NO_ANSWER if asked is None else asked(self, *args, **kwargs)

    def is_open(self, needs: Decides, *tensors: torch.Tensor) -> bool:
        """Whether a question about tensors stays open; never that about a real one, which torch would answer itself."""
        if self._decides >= needs or not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            return False
        self.left_open = True
        return True

    def truth(self, tensors: Sequence[torch.Tensor], answer: Callable[[], Any]) -> Any:
        """A yes or no about tensors, decided where numbers are left open too: no bound stands for it.

        Args:
            tensors: what is asked about.
            answer: decides it.

        Returns:
            What comes out; `NO_ANSWER` where it is like any number, or can't be decided: why is told by a trace in
            which it must be.
        """
        if self._decides >= Decides.NUMBERS or not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            return NO_ANSWER
        try:
            return answer()
        except CaptureError:
            return NO_ANSWER

    def number(self, tensor: torch.Tensor) -> Any:
        """The one number in a tensor; of numbers that are read one by one (`tolist`), all are decided at once."""
        maker = self.tape.maker(tensor)
        if maker is not None and maker.target is aten.unbind.int:
            whole = maker.args[0]
            if whole.dim() == 1 and whole.numel() <= MAX_ENTRIES:
                return self.numbers(whole)[next(i for i, piece in enumerate(maker.result) if piece is tensor)]
        return self.numbers(tensor)[0]

    def numbers(self, tensor: torch.Tensor) -> list[Any]:
        """The entries of a tensor as they are now."""
        when = self.tape.writes_into(tensor)
        known = self._lists.get(id(tensor))
        if known is None or known[0] != when:
            known = self._lists[id(tensor)] = (when, self.ask([tensor], torch.clone))
        return known[1]

    def ask(self, tensors: Sequence[torch.Tensor], finish: Finish) -> list[Any]:
        """The entries of something computed from tensors, for the call that is traced.

        Args:
            tensors: of the trace.
            finish: what is computed from them: one tensor.

        Raises:
            CaptureError: it does not depend on inputs and weights alone, or they have no values here.
        """
        where = line_being_run()
        try:
            decision = elsewhere(lambda: self._maker.make(tensors, finish, where))
        except UnknownOrigin as error:
            raise CaptureError(
                f"it asks for the value of a tensor, which can't be known before the run: {error}\n  at {where}"
            ) from error
        program = decision.program
        arguments = program.arguments_of(self._tensors, self._inputs)
        read = [a for a, node in zip(arguments, program.placeholders, strict=True) if node.users]
        if any(isinstance(a, torch.Tensor) and (isinstance(a, FakeTensor) or a.is_meta) for a in read):
            raise NoValues(
                f"it asks for the value of a tensor, and the example inputs or weights that it depends on have none\n"
                f"  at {where}\n  give real tensors: the trace is made for what their values decide"
            )
        numbers = elsewhere(lambda: numbers_in(self._decide(decision, arguments)))
        if not decision.is_fixed:
            self.decided.append(Decided(decision, outcome_of(numbers)))
        return numbers

    def count_as_before(self, mask: torch.Tensor) -> None:
        """Give an open count of a mask the symbol of an earlier one with the same entries: torch is slow with many."""
        origin = self.tape.origin(mask)
        if origin is not None and isinstance(mask, FakeTensor):
            before = self._masks.setdefault(origin, mask)
            if before is not mask:
                mask.nonzero_memo = before.nonzero_memo

    def fake(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A fake tensor of the trace, made without leaving traces."""
        return elsewhere(lambda: self._maker.fake(make))


def _number(decider: Decider, tensor: torch.Tensor) -> Any:
    found = decider.truth([tensor], lambda: decider.number(tensor)) if tensor.dtype is torch.bool else NO_ANSWER
    if found is not NO_ANSWER:
        return found
    return NO_ANSWER if decider.is_open(Decides.NUMBERS, tensor) else decider.number(tensor)


def _equal(decider: Decider, one: torch.Tensor, other: torch.Tensor) -> Any:
    def answer() -> Any:
        return one.shape == other.shape and decider.ask([one, other], lambda a, b: torch.eq(a, b).all())[0]

    return _yes_or_no(decider, one, other, answer)


def _allclose(
    decider: Decider,
    one: torch.Tensor,
    other: torch.Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Any:
    def finish(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # as `torch.isclose` computes it, but in place
        error = (a - b).abs()
        close = (a == b) | (error.isfinite() & (error <= atol + (rtol * b).abs()))
        return (close | ((a != a) & (b != b)) if equal_nan else close).all()

    return _yes_or_no(decider, one, other, lambda: decider.ask([one, other], finish)[0])


def _yes_or_no(decider: Decider, one: torch.Tensor, other: torch.Tensor, answer: Callable[[], Any]) -> Any:
    found = decider.truth([one, other], answer)
    if found is not NO_ANSWER:
        return found
    return NO_ANSWER if decider.is_open(Decides.NUMBERS, one, other) else answer()


def _nonzero(decider: Decider, mask: torch.Tensor) -> Any:
    if not decider.is_open(Decides.SIZES, mask):
        _count(decider, mask)
    else:
        decider.count_as_before(mask)
    return NO_ANSWER


def _index(decider: Decider, table: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Any:
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            _nonzero(decider, index)
    return NO_ANSWER


def _masked_select(decider: Decider, table: torch.Tensor, mask: torch.Tensor) -> Any:
    if decider.is_open(Decides.SIZES, table, mask):
        return NO_ANSWER
    shape = torch.broadcast_shapes(table.shape, mask.shape)
    size = decider.ask([mask], lambda m: torch.count_nonzero(m.expand(shape)))[0]
    return decider.fake(lambda: torch.empty(size, dtype=table.dtype, device=table.device))


def _repeats(decider: Decider, repeats: torch.Tensor, *, output_size: int | None = None) -> Any:
    if output_size is not None or decider.is_open(Decides.SIZES, repeats):
        return NO_ANSWER
    size = decider.ask([repeats], torch.sum)[0]
    return decider.fake(lambda: torch.empty(size, dtype=repeats.dtype, device=repeats.device))


def _unique(decider: Decider, values: torch.Tensor, *_: Any, **__: Any) -> Any:
    if not decider.is_open(Decides.SIZES, values) and isinstance(values, FakeTensor) and values.numel():
        values.unique_memo = (
            1 + decider.ask([values], lambda v: torch.count_nonzero(v.flatten().sort().values.diff()))[0]
        )
    return NO_ANSWER


def _unique_consecutive(decider: Decider, values: torch.Tensor, *args: Any, dim: int | None = None, **_: Any) -> Any:
    whole = dim is None and len(args) < 3
    if whole and not decider.is_open(Decides.SIZES, values) and isinstance(values, FakeTensor) and values.numel():
        steps = decider.ask([values], lambda v: torch.count_nonzero(v.flatten().diff()))
        values.unique_consecutive_memo = 1 + steps[0]
    return NO_ANSWER


def _bincount(decider: Decider, values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> Any:
    if weights is not None or not values.numel() or decider.is_open(Decides.SIZES, values):
        return NO_ANSWER
    size = max(minlength, 1 + decider.ask([values], torch.amax)[0])
    return decider.fake(lambda: torch.empty(size, dtype=torch.int64, device=values.device))


def _count(decider: Decider, mask: torch.Tensor) -> None:
    """Tell a fake mask how many of its entries are true: that many rows `nonzero` has, and what is picked by it."""
    if isinstance(mask, FakeTensor):
        mask.nonzero_memo = decider.ask([mask], torch.count_nonzero)[0]


_QUESTIONS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _number,
    aten._unique2.default: _unique,
    aten.allclose.default: _allclose,
    aten.bincount.default: _bincount,
    aten.equal.default: _equal,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.nonzero.default: _nonzero,
    aten.nonzero_numpy.default: _nonzero,
    aten.repeat_interleave.Tensor: _repeats,
    aten.unique_consecutive.default: _unique_consecutive,
}
