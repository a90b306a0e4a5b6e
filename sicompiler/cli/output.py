"""What the commands print with: tables on stdout, progress on stderr, silence around other people's code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOW_AFTER_SECONDS = 1.0
PIPED_WIDTH = 150
LEAST_WIDTH = 20  # columns; a terminal that says less does not know its size


def show(*renderables: RenderableType) -> None:
    """Print tables and text for people; brackets in text are text, not markup."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal or console.width < LEAST_WIDTH:
        console.width = PIPED_WIDTH
    for renderable in renderables:
        console.print(renderable)


def show_json(found: Any) -> None:
    """Print one JSON object for machines."""
    print(json.dumps(found, indent=2))


def show_text(text: str) -> None:
    """Print text as it is."""
    sys.stdout.write(text)


def note(text: str) -> None:
    """Tell people something on the side, on stderr."""
    print(f"sicompiler: {text}", file=sys.stderr)


@contextlib.contextmanager
def quiet(*, prints: bool = False) -> Iterator[None]:
    """Run code that likes to talk: no warnings, no log, nothing on stdout. With TORCH_LOGS set, torch's log is shown.

    Args:
        prints: let what it prints through, to stderr (the user's own code); else it is dropped (torch.export's graphs).
    """
    from sicompiler.capture.silence import silent_torch

    disabled = logging.root.manager.disable
    target = sys.stderr if prints else io.StringIO()
    streams = (contextlib.redirect_stdout(target), contextlib.redirect_stderr(target))
    with silent_torch(), streams[0], streams[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


class Progress:
    """A progress bar on stderr for work of over a second; nothing where stderr is no terminal.

    with Progress() as progress:
        progress("capture", 0, 1)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._bar: Any = None
        self._stream = sys.stderr  # the real one, also where `quiet` replaces it
        self._now: tuple[str, int, int] = ("starting", 0, 1)

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._timer = threading.Timer(SHOW_AFTER_SECONDS, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._bar is not None:
                self._bar.stop()
            self._timer = self._bar = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell how far the work has come."""
        with self._lock:
            self._now = (what, done, total)
            if self._bar is not None:
                self._update()

    def note(self, text: str) -> None:
        """Tell people something on the side, also where `quiet` is."""
        print(f"sicompiler: {text}", file=self._stream)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        with self._lock:
            if self._timer is None:
                return
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            console = Console(file=self._stream)
            if console.width < LEAST_WIDTH:
                console.width = PIPED_WIDTH // 2
            # Not redirected: `quiet` has its own streams in place by now, which the bar would put back at its end.
            self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._task = self._bar.add_task("", total=None)
            self._update()
            self._bar.start()

    def _update(self) -> None:
        what, done, total = self._now
        self._bar.update(self._task, description=what, completed=done, total=total if total > 1 else None)


def json_rows(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclasses as JSON objects."""
    from dataclasses import asdict

    return [asdict(row) for row in rows]
