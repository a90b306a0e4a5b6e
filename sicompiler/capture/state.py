"""State: a call that leaves something behind for the next one is refused by name, unless the next one can't tell.

A graph is traced once, so what a call writes into the model (counters, the residual of the step before, features that
are kept) would be frozen as it was at the trace. Where no tensor is left behind, one more call is traced that begins
with what the first has left: if it is the same graph and leaves the same, so is every call after it. Else two calls are
traced in a row, each with inputs of its own, which tells two more kinds of writing that are harmless:

- a cache filled by the first call, with values made of nothing but sizes and Python numbers (tables of rotary
  embeddings): the second call finds it, writes nothing, and computes the same;
- what is written anew at every call before it is read, with values that do not depend on the inputs (`weight_norm`).

Everything a trace writes is put back in any case.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.graph_signature import InputKind

from sicompiler.capture.aliases import spell_out_aliases
from sicompiler.capture.entry import FORWARD
from sicompiler.capture.live_tensors import named_tensors
from sicompiler.capture.program import fingerprint
from sicompiler.capture.rehearsal import Score, rehearse
from sicompiler.errors import CaptureError
from sicompiler.guards import Moment, Undo, Written, global_hooks, keep_state, twice, watched

_ADVICE = (
    "  a graph is traced once, so what a call leaves behind for the next would be frozen in it; switch off or remove "
    "what writes it (what step caches do, compile_for_budget(pipe, rehash=...) does within the budget)"
)


@contextlib.contextmanager
def state_kept(model: torch.nn.Module, method: str) -> Iterator[Undo]:
    """Put back, in the end, everything that a trace writes into what a model can reach.

    Args:
        model: the live model.
        method: the entry point.

    Yields:
        What puts it back before.

    Raises:
        CaptureError: forward hooks are registered for all modules of the process.
    """
    hooks = global_hooks()
    if hooks:
        names = ", ".join(str(getattr(hook, "__qualname__", type(hook).__name__)) for hook in hooks)
        raise CaptureError(
            f"{type(model).__name__} can't be captured: forward hooks are registered for all modules ({names}); "
            "remove them by the handle that register_module_forward_hook gave"
        )
    undo = keep_state(model, method)
    for path, kind in undo.moving:
        raise CaptureError(
            f"{type(model).__name__} can't be captured: `{path}` is a {kind}, which every call moves on\n"
            "  a graph is traced once, and has no place for the next element: pass what it gives as an input"
        )
    try:
        yield undo
    finally:
        undo.back()


class TracedEntry:
    """The module that is traced, with a forward that is watched.

    Args:
        module: the module, made for the trace or live.
        method: which entry point of the live model its forward is.
        name: of the model.
        undo: puts back what a trace writes into the model.
        call: the forward of the module, with results that a graph can have.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        method: str,
        name: str,
        undo: Undo,
        call: Callable[..., Any],
    ) -> None:
        self._module, self._method, self._name = module, method, name
        self._call, self._forward = call, module.forward
        self._own = dict(module.__dict__)
        self._undo = undo
        self._written = Written()

    @contextlib.contextmanager
    def watched(self) -> Iterator[torch.nn.Module]:
        """The module, for one trace of its forward."""
        self._module.__dict__[FORWARD] = watched(self._module, self._call, self._forward, self._method, self._written)
        try:
            yield self._module
        finally:
            self._back()

    def settles(
        self, score: Score | None, shown: Callable[[], Hashable], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether all is said by a call that begins with what the traced one has left.

        It is, where nothing that was left holds a tensor, and that call is the same graph and leaves the same: then so
        does every one after it. A cache that a call fills and resets is like that. The call is rehearsed where that
        can tell, and traced where it can't.

        Args:
            score: what the traced call did; None for a graph, whose operators torch runs one by one.
            shown: what tells the graph of that call, which has not been undone, from others.
            args: of that call.
            kwargs: of the same call.
        """
        written = self._written
        if written.arguments or written.defaults() or not written.paths() or not written.leaves_plain():
            return False
        if score is not None and score.is_whole:
            again = self._watch_again(keeps=True)
            call = functools.partial(type(self._module)._call_impl, self._module)
            if rehearse(score, named_tensors(self._module), call) and self._is_settled(again):
                return True
            if again.moments and (left := again.moments[0].undo):
                left.back()
        else:
            again = Written([Moment.of(self._module, self._forward, self._method)])
        if again.moments and not self._begins_there(again.moments[0]):
            return False  # torch.export has put back what it knows of
        again = self._watch_again()
        try:
            second = torch.export.export(self._module, tuple(args), dict(kwargs), strict=False)
        except Exception:  # what is wrong with it is told by the trace of two calls
            return False
        return self._is_settled(again) and shown() is not None and shown() == graph_shown(second)

    def _watch_again(self, keeps: bool = False) -> Written:
        again = Written(keeps=keeps)
        self._module.__dict__[FORWARD] = watched(self._module, self._call, self._forward, self._method, again)
        return again

    def _begins_there(self, moment: Moment) -> bool:
        """Whether all that the first call has changed is as it was left."""
        left = self._written.moments[1].facts
        return all(left.get(path) == moment.facts.get(path) for path in self._written.paths())

    def _is_settled(self, again: Written) -> bool:
        """Whether a second call began with what the first has left, and has left the same."""
        return self._begins_there(again.moments[0]) and not again.paths()

    def _back(self) -> None:
        self._undo.back()
        self._module.__dict__.clear()
        self._module.__dict__.update(self._own)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse what the next call could tell.

        Args:
            args: of the call that was traced.
            kwargs: of the same call.

        Raises:
            CaptureError: names what was written.
        """
        for argument in self._written.arguments:
            raise CaptureError(
                f"{self._name} can't be captured: it changes {argument}, a container that its caller passed\n"
                "  pass it a copy, and let the model return what is new"
            )
        paths = self._written.paths()
        if not paths:
            return
        if self._written.defaults():
            raise self._refusal(self._written.defaults(), "a call changes what all of the process sees")
        if self._written.is_random(paths[0]):
            raise self._refusal(paths, "a call draws random numbers that are not torch's")
        exported, again = self._two_calls(args, kwargs, paths)
        if again.rewritten():
            raise self._refusal(again.rewritten())
        why = _difference(exported, again, paths)
        if why:
            raise self._refusal(paths, why)

    def _two_calls(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], paths: list[str]
    ) -> tuple[torch.export.ExportedProgram, Written]:
        again = Written()
        others = pytree.tree_map_only(torch.Tensor, torch.clone, (tuple(args), dict(kwargs)))
        self._module.__dict__[FORWARD] = twice(self._module, self._call, self._forward, self._method, paths, again)
        try:
            exported = torch.export.export(self._module, (tuple(args), dict(kwargs), *others), {}, strict=False)
            if any(map(_writes, exported.graph.nodes)):
                spell_out_aliases(exported.graph_module, self._name)
                exported = exported.run_decompositions({})
        except Exception as error:
            raise self._refusal(paths) from error
        finally:
            self._back()
        return exported, again

    def _refusal(self, paths: Sequence[str], why: str = "") -> CaptureError:
        where, values = self._written.shown(paths[0])
        others = [name for name in dict.fromkeys(self._written.shown(path)[0] for path in paths) if name != where]
        also = f" (and {', '.join(others[:2])}{' and more' if len(others) > 2 else ''})" if others else ""
        what = f"{why}: {where} is changed{values}{also}" if why else f"{where} changes at every call{values}{also}"
        return CaptureError(f"{self._name} can't be captured: {what}\n{_ADVICE}")


def graph_shown(exported: torch.export.ExportedProgram) -> Hashable:
    """What tells a traced graph from others, constants included; None where a constant can't be told."""
    specs = [(spec.kind, spec.target) for spec in exported.graph_signature.input_specs]
    constants = list(_constants(exported).values())
    if len(constants) != sum(kind is InputKind.CONSTANT_TENSOR for kind, _ in specs):
        return None
    return tuple(specs), tuple(constants), fingerprint(exported.graph)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _difference(exported: torch.export.ExportedProgram, again: Written, paths: Sequence[str]) -> str:
    """How the second of two calls can tell that there was a first one; empty if it can't."""
    graph = exported.graph
    inputs = [node for node in graph.find_nodes(op="placeholder") if _kind(exported, node) is InputKind.USER_INPUT]
    weights = {n for n in graph.find_nodes(op="placeholder") if _kind(exported, n) in _WEIGHTS}
    half = len(inputs) // 2
    first, twins = set(inputs[:half]), dict(zip(inputs[half:], inputs[:half], strict=True))
    number = _numbering(graph, twins, _constants(exported))
    (outputs,) = (node.args[0] for node in graph.find_nodes(op="output"))
    assert exported.call_spec.out_spec is not None
    one, other, left, kept = pytree.tree_unflatten(list(outputs), exported.call_spec.out_spec)
    ours, theirs = pytree.tree_leaves(one), pytree.tree_leaves(other)
    if list(map(number, ours)) != list(map(number, theirs)):
        return "the first call computes something else than the next one"
    if _depends(theirs, first):
        return "a call computes with what the one before has left"
    if _depends([*left.values(), *kept.values()], {*inputs}):
        return "a call leaves values behind that depend on its inputs"
    same = [path for path in left if again.moments[1].facts.get(path) == again.moments[2].facts.get(path)]
    if _depends([left[path] for path in same], weights):
        return "a call leaves values behind that are made of weights, which may change"
    return ""


_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)


def _kind(exported: torch.export.ExportedProgram, node: fx.Node) -> InputKind:
    kinds: Iterator[InputKind] = (s.kind for s in exported.graph_signature.input_specs if s.arg.name == node.name)
    return next(kinds)


def _depends(values: Sequence[Any], sources: set[fx.Node]) -> bool:
    left, met = [value for value in values if isinstance(value, fx.Node)], set()
    while left:
        node = left.pop()
        if node in sources:
            return True
        if node not in met:
            met.add(node)
            left += node.all_input_nodes
    return False


def _constants(exported: torch.export.ExportedProgram) -> dict[fx.Node, str]:
    """What tells the tensors apart that a trace has made of Python numbers, each call its own."""
    contents = {}
    for node in exported.graph.find_nodes(op="placeholder"):
        spec = next(s for s in exported.graph_signature.input_specs if s.arg.name == node.name)
        value = exported.constants.get(spec.target) if spec.kind is InputKind.CONSTANT_TENSOR and spec.target else None
        if isinstance(value, torch.Tensor) and value.numel() <= _LITERAL and not isinstance(value, FakeTensor):
            contents[node] = f"{value.dtype} {tuple(value.shape)} {value.tolist()!r}"
    return contents


_LITERAL = 2**12  # entries of a constant that is compared by them


def _numbering(graph: fx.Graph, twins: Mapping[fx.Node, fx.Node], constants: Mapping[fx.Node, str]) -> Any:
    """A function that gives equal values of a graph equal numbers.

    Args:
        graph: of two calls.
        twins: the inputs of the second call, and which of the first they are.
        constants: what tells placeholders of constants apart.
    """
    numbers: dict[fx.Node, int] = {}
    known: dict[str, int] = {}

    def number(value: Any) -> Any:
        return numbers[value] if isinstance(value, fx.Node) else repr(value)

    for index, node in enumerate(graph.nodes):
        if node in twins:
            numbers[node] = numbers[twins[node]]
        elif node in constants:
            numbers[node] = known.setdefault(constants[node], index)
        elif node.op == "call_function":
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
            numbers[node] = known.setdefault(f"{node.target} {arguments!r}", index)
        else:
            numbers[node] = index
    return number
