"""The command line. Exit status: 0 done, 2 does not fit or bad input (one line on stderr), 1 internal error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sicompiler.errors import PassError, SicompilerError

INTERRUPTED = 130  # as shells count: 128 and the number of the signal


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: without the program's name.

    Returns:
        The exit status. Errors that are no decision of the user (ours) are raised, with their traceback.
    """
    from sicompiler.cli.app import app

    try:
        status = app(args=list(arguments) or ["--help"], prog_name="sicompiler", standalone_mode=False)
    except PassError:  # a bug of ours
        raise
    except SicompilerError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if type(error).__name__ == "Abort":  # what typer makes of Ctrl-C, whichever click it is built on
            return INTERRUPTED
        message = getattr(error, "format_message", None)  # typer's usage errors, whichever click it is built on
        if message is None:
            raise
        return _refuse(f"{message()} (see sicompiler --help)")
    return status if isinstance(status, int) else 0


def _refuse(message: str) -> int:
    """Say on one line what is wrong."""
    print(f"sicompiler: {' '.join(message.split())}", file=sys.stderr)
    return 2
