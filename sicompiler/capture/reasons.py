"""Why a model can't be captured: the reason, the user's source line and the advice."""

from __future__ import annotations

import re
import sys
from types import FrameType

from torch import fx

_NOT_THE_USERS = re.compile(r"[/\\](torch|sicompiler)[/\\]")
UNKNOWN_LINE = "an unknown line"
_FRAME = re.compile(r"^\s*File \"([^\"]+)\", line (\d+), in (\S+)", re.MULTILINE)


def is_users_file(filename: str) -> bool:
    """Whether code is neither torch's nor ours, nor made up while it runs."""
    return not _NOT_THE_USERS.search(filename) and not filename.startswith("<")


def reason(error: Exception) -> str:
    """The first line of an error of `torch.export`, and where in the user's code it was raised."""
    first = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {first[0] if first else 'no message'}"
    where = None
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if is_users_file(filename):
            where = f"{filename}:{trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    user = _FRAME.search(str(error))
    if where is None and user is not None:
        where = f"{user[1]}:{user[2]}, in {user[3]}"
    return text if where is None else f"{text}\n  at {where}"


def advice(error: Exception) -> str:
    """What to do about an error of `torch.export`."""
    if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
        return "  its control flow depends on tensor values; pass those decisions in as Python values"
    if isinstance(error, NotImplementedError):
        return (
            "  the model itself says so, compiled or not: switch on what it asks for, such as enable_tiling(); what "
            "only runs tiled runs untouched in a compiled pipeline"
        )
    return "  the model must be traceable by torch.export.export(model, args, kwargs, strict=False)"


def source_line(node: fx.Node) -> str:
    """The user's line behind a node of a captured graph: "file:line, in function"; "an unknown line" without one."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    theirs = [frame for frame in frames if is_users_file(frame[0])]
    if not frames:
        return "an unknown line"
    file, line, function = (theirs or frames)[-1]
    return f"{file}:{line}, in {function}"


def line_being_run() -> str:
    """The user's line that is being run: "file:line, in function"; of a thread that runs none, "an unknown line"."""
    place = place_being_run()
    return UNKNOWN_LINE if place is None else "{}:{}, in {}".format(*place)


def place_being_run() -> tuple[str, int, str] | None:
    """File, line and function of the user's code that is being run; None in a thread that runs none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        filename = frame.f_code.co_filename
        if is_users_file(filename):
            return filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
    return None
