"""The command line. Exit status: 0 done, 2 does not fit or bad input (one line on stderr), 1 internal error.

130 after Ctrl-C, 141 where whoever reads the output has gone.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence

from sicompiler.errors import PassError, SicompilerError
from sicompiler.renamed import check_options

INTERRUPTED, READER_GONE = 130, 141  # as shells count: 128 and the number of the signal


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    status = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # what the process ends with is not taken apart one by one, which takes seconds for a large graph
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: without the program's name.

    Returns:
        The exit status. Errors that are no decision of the user (ours) are raised, with their traceback.
    """
    try:
        check_options(arguments)
        from sicompiler.cli.app import app

        status = app(args=list(arguments) or ["--help"], prog_name="sicompiler", standalone_mode=False)
        sys.stdout.flush()  # while an error can still be told
        if status == INTERRUPTED:  # some versions of typer make this of Ctrl-C, others raise
            return _interrupted()
    except PassError:  # a bug of ours
        raise
    except SicompilerError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _interrupted()
    except (BrokenPipeError, SystemExit) as error:  # `sicompiler dump svd | head`, of which typer makes an exit
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        _drop_stdout()
        return READER_GONE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # files say so themselves
            raise
        _drop_stdout()
        return _refuse(f"can't write to stdout: {error.strerror}")
    except Exception as error:
        if type(error).__name__ == "Abort":  # what typer makes of Ctrl-C, whichever click it is built on
            return _interrupted()
        message = getattr(error, "format_message", None)  # typer's usage errors, whichever click it is built on
        if message is None:
            raise
        return _refuse(f"{message()} (see sicompiler --help)")
    return status if isinstance(status, int) else 0


def _drop_stdout() -> None:
    """Let what is left in the buffer go nowhere, so that the interpreter says nothing about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted() -> int:
    print("sicompiler: interrupted", file=sys.stderr)
    return INTERRUPTED


def _refuse(message: str) -> int:
    """Say on one line what is wrong."""
    print(f"sicompiler: {' '.join(message.split())}", file=sys.stderr)
    return 2
