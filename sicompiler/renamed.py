"""Names that were given up: a use is refused in one line that says the new name, and never means something else."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from sicompiler.errors import BadInput

PARAMETERS = {"far_memory": "offload"}
NAMES = {"FarMemoryError": "OffloadError"}
OPTIONS = {"--far-memory": "--offload"}
VARIABLES = {"SICOMPILER_FAR_MEMORY": "SICOMPILER_OFFLOAD_DIR"}

P = ParamSpec("P")
T = TypeVar("T")


def refuses_renamed(function: Callable[P, T]) -> Callable[P, T]:
    """Have a public function refuse parameters, and environment variables, by their old names.

    Raises:
        BadInput: one is given; names the new one.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for old in PARAMETERS.keys() & kwargs.keys():
            raise BadInput(f"{old}= is called {PARAMETERS[old]}= now")
        check_environment()
        return function(*args, **kwargs)

    return checked


def check_environment() -> None:
    """Refuse environment variables by their old names.

    Raises:
        BadInput: one is set; names the new one.
    """
    for old, new in VARIABLES.items():
        if old in os.environ:
            raise BadInput(f"the environment variable {old} is called {new} now")


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options of the command line, and environment variables, by their old names.

    Raises:
        BadInput: one is given; names the new one.
    """
    check_environment()
    for old, new in OPTIONS.items():
        if any(argument.partition("=")[0] == old for argument in arguments):
            raise BadInput(f"{old} is called {new} now")
