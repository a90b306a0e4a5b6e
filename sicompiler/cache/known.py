"""What is asked of the cache: the program of a call, and the plans of a program with what they make of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from sicompiler.cache.graphs import Broken, Unpackable
from sicompiler.cache.keys import call_digest, code_digest, processor, versions
from sicompiler.cache.programs import pack_program, unpack_program
from sicompiler.cache.store import Store
from sicompiler.cache.versions import digest_of, digest_of_bytes
from sicompiler.capture import Program, compile_now, named_tensors
from sicompiler.errors import StalePlan
from sicompiler.guards import ModuleGuards
from sicompiler.guards.sources import NotDurable
from sicompiler.plan import Plan

log = logging.getLogger("sicompiler")

T = TypeVar("T")

MOST_OUTCOMES = 8  # programs of one call, which differ in what was decided by values


@dataclass(frozen=True)
class KnownPrograms:
    """Captured programs of the calls of one method.

    Attributes:
        store: where they lie.
        method: which.
    """

    store: Store
    method: str

    def key(
        self, model: torch.nn.Module, guards: ModuleGuards, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        """What the program of a call depends on; None where that means nothing to another process."""
        try:
            devices = " ".join(sorted({str(tensor.device) for tensor in named_tensors(model).values()}))
            return call_digest(guards.facts_of(model), devices, self.method, args, kwargs)
        except NotDurable as error:
            log.info("the program of this call is not kept for other processes: it depends on %s", error)
        except Exception as error:  # objects of anybody's classes are looked at: what they raise is no reason to fail
            log.info("the program of this call is not kept for other processes: %s: %s", type(error).__name__, error)
        return None

    def find(self, key: str, live: Sequence[torch.Tensor]) -> Iterator[tuple[Program, str]]:
        """The programs of a call, each with its digest: one for each outcome of what the model decides by values.

        Args:
            key: of the call.
            live: tensors of the model that constants of a program may be.
        """
        for name in self.store.names(f"program-{key}")[:MOST_OUTCOMES]:
            data = self.store.read(name)
            if data is not None:
                try:
                    yield unpack_program(data, live), digest_of_bytes(data)
                except Broken as error:
                    self.store.drop(name, f"is no program ({error})")

    def keep(self, key: str, program: Program) -> str | None:
        """Keep the program of a call; gives its digest, None where it has no form in a file."""
        data = _packed(program)
        if data is None:
            return None
        outcomes = digest_of(*(repr(one.outcome) for one in program.decided))
        self.store.write(f"program-{key}-{outcomes[:8]}", data)
        return digest_of_bytes(data)


def program_digest(program: Program) -> str | None:
    """A digest of all that a program is; None where it has no form in a file."""
    data = _packed(program)
    return None if data is None else digest_of_bytes(data)


def _packed(program: Program) -> bytes | None:
    return _for_others(lambda: pack_program(program), "a program is", "it has")


def _for_others(make: Callable[[], T], what: str, because: str) -> T | None:
    """What other processes could read; None where there is no such form, which is said.

    Args:
        make: gives it.
        what: is not kept then, with its verb.
        because: introduces what stands in the way.
    """
    try:
        return make()
    except (Unpackable, NotDurable) as error:
        log.info("%s not kept for other processes: %s %s", what, because, error)
    except Exception as error:  # as for keys
        log.info("%s not kept for other processes: %s: %s", what, type(error).__name__, error)
    return None


@dataclass(frozen=True)
class KnownPlans:
    """Answers about one program, each looked up before it is worked out: plans, floors, rewritten programs.

    Attributes:
        store: where they lie.
        program: what the answers are about, as a digest: the program and all that a planner is told beside it.
        users: digest of what users had registered by the time this was made, rules of their operators say.
        code: what they have registered by now. Where that is more, nothing is looked up or kept: nobody knows with
            which of it the program was analysed.
    """

    store: Store
    program: str
    users: str = ""
    code: Callable[[], Sequence[object]] = tuple

    @staticmethod
    def of(
        store: Store, program: str, *told: object, code: Callable[[], Sequence[object]] = tuple
    ) -> KnownPlans | None:
        """What is known of a program; None where it depends on code that means nothing to another process.

        Args:
            store: where to look.
            program: the digest of a captured one, or of a part of such.
            told: what a planner is told beside it: the kind of device, its cost model, bytes of weights.
            code: functions that users have registered by the time it is called.
        """
        users = _code_digest(code())
        if users is None:
            return None
        return KnownPlans(store, digest_of(versions(), processor(), *map(repr, told), program, users), users, code)

    def plan(self, question: str, make: Callable[[], Plan | None], planner: Sequence[object] = ()) -> Plan | None:
        """The plan that answers a question; None where none fits.

        Args:
            question: the budget and what is allowed.
            make: searches for it.
            planner: the function of a user that chooses it, if any.
        """
        if planner:
            digest = _code_digest(planner)
            if digest is None:
                return make()
            question = f"{question} {digest}"
        began, name = time.perf_counter(), self._name(question)
        found = self._read(name)
        if found is not None:
            try:
                if found["plan"] is None:
                    return None
                plan = Plan.from_json(json.dumps(found["plan"]))
                return replace(plan, timings={"cache": time.perf_counter() - began})
            except (KeyError, TypeError, StalePlan) as error:
                self._drop(name, f"is no plan ({error})")
        made = make()
        self._write(name, {"plan": None if made is None else json.loads(made.to_json())})
        return made

    def numbers(self, question: str, make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        """Bytes, and the operator that sets them.

        Args:
            question: which.
            make: works them out.
        """
        name = self._name(question)
        found = self._read(name)
        if found is not None and isinstance(found.get("bytes"), int):
            return found["bytes"], str(found.get("operator", ""))
        nbytes, operator = make()
        self._write(name, {"bytes": nbytes, "operator": operator})
        return nbytes, operator

    def peaks(self, question: str, make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """Several numbers of bytes.

        Args:
            question: which.
            make: works them out.
        """
        name = self._name(question)
        found = self._read(name)
        known = found.get("peaks") if found is not None else None
        if isinstance(known, list) and all(isinstance(nbytes, int) for nbytes in known):
            return tuple(known)
        peaks = make()
        self._write(name, {"peaks": list(peaks)})
        return peaks

    def bytes_if_known(self, question: str, make: Callable[[], int | None] | None = None) -> int | None:
        """Bytes that nobody has to work out; None where they are not known, or can't be.

        Args:
            question: which.
            make: works them out all the same.
        """
        name = self._name(question)
        found = self._read(name)
        if found is not None and isinstance(found.get("bytes", ""), int | None):
            known: int | None = found["bytes"]
            return known
        if make is None:
            return None
        nbytes = make()
        self._write(name, {"bytes": nbytes})
        return nbytes

    def rewritten(self, program: Program, plan: Plan, make: Callable[[], Program]) -> Program:
        """The program that a plan makes of this one.

        Args:
            program: this one.
            plan: of it.
            make: carries the plan out.
        """
        unmarked = replace(plan, timings={}, predicted_allocated_bytes=None, predicted_reserved_bytes=None)
        name = self._name(f"rewritten {unmarked.to_json(indent=None)}")
        if name is None:
            return make()
        data = self.store.read(name)
        if data is not None:
            try:
                found = unpack_program(data, list(program.constants.values()))
                compile_now(found.graph_module)
                return replace(found, decided=program.decided)
            except Broken as error:
                self.store.drop(name, f"is no program ({error})")
        made = make()
        packed = _packed(replace(made, decided=()))
        if packed is not None:
            self.store.write(name, packed)
        return made

    def _name(self, question: str) -> str | None:
        """The entry of a question, asked for before it is answered; None where the answer can't be kept."""
        is_as_before = _code_digest(self.code()) == self.users
        return f"plan-{digest_of(self.program, question)}" if is_as_before else None

    def _read(self, name: str | None) -> dict[str, Any] | None:
        data = None if name is None else self.store.read(name)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._drop(name, "is no answer")
            return None
        return found

    def _write(self, name: str | None, answer: Mapping[str, Any]) -> None:
        if name is not None:
            self.store.write(name, json.dumps(answer).encode())

    def _drop(self, name: str | None, why: str) -> None:
        if name is not None:
            self.store.drop(name, why)


def _code_digest(code: Sequence[object]) -> str | None:
    return _for_others(lambda: code_digest(code), "answers are", "they depend on")
