"""Silence around torch's tracer, which prints graphs and logs tracebacks before it raises what we tell in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

# What torch.export warns about itself: copies of its own specs, and attributes that a trace sets and we put back.
_WARNINGS = (".*LeafSpec.* is deprecated", "The tensor attributes? self")
SWITCH = "TORCH_LOGS"  # torch's own: who set it wants to see what torch says
_TRACE = "torch.__trace"  # writes files, shows nothing; where nobody asked for files, it turns itself off at its first
# record, which it has to see for that. Until then torch describes stacks of Python for it, a tenth of a small capture.


class _Stream:
    """A stream that drops what torch prints, and passes everything else on."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] == "torch":
            return len(text)
        written: int = self._inner.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextlib.contextmanager
def silent_torch() -> Iterator[None]:
    """A context in which nothing that torch logs or prints in this thread is shown; prints of the model's own are.

    With the environment variable TORCH_LOGS set, everything is shown.
    """
    if os.environ.get(SWITCH):
        yield
        return
    thread = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.name.split(".")[0] != "torch"

    loggers = [logging.getLogger(), *map(logging.getLogger, _torch_loggers())]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}.values()
    for handler in handlers:
        handler.addFilter(is_shown)
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def _torch_loggers() -> list[str]:
    return [name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] == "torch" and name != _TRACE]
