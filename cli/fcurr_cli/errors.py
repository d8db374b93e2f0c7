"""Errors of the library as messages and exit codes.

0 done; 1 failed; 2 a wrong command line, config or input; 3 a loss that is not finite; 5 the disk; 130 and 143 stopped
by Ctrl-C and SIGTERM.
"""

import contextlib
import sys
from collections.abc import Iterator

import typer


def fail(message: str, code: int) -> typer.Exit:
    print(f"fcurr: {message}", file=sys.stderr)
    return typer.Exit(code)


@contextlib.contextmanager
def messages(resume: str = "") -> Iterator[None]:
    """Errors that are messages to a person, as messages and exit codes."""
    from fcurr.errors import BadInput

    try:
        yield
    except BadInput as wrong:
        raise fail(str(wrong), 2) from None
    except BrokenPipeError:
        raise
    except OSError as wrong:
        raise fail(f"{wrong.filename or 'the disk'}: {wrong.strerror or wrong}", 5) from None
    except KeyboardInterrupt:
        raise fail(f"stopped at once{resume}", 130) from None
