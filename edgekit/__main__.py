"""Starts the command line; an interrupt at any moment, imports included, ends in one line and exit code 130."""

import signal
import sys
from types import FrameType

INTERRUPTED = 130


class _Interrupt:
    """Remembers a Ctrl-C: libraries that are being imported turn it into errors of their own."""

    seen = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main() -> None:
    """Run the command that sys.argv names and exit with its code."""
    interrupt = _Interrupt()
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        from edgekit.cli import run_command_line

        code = run_command_line()
    except BaseException as failed:
        if not (interrupt.seen or isinstance(failed, KeyboardInterrupt)):
            raise
        code = INTERRUPTED
    # The command has ended; while the libraries tidy up, a Ctrl-C has nothing to stop any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if interrupt.seen:
        # What a half-imported library says of its end adds nothing to the one line.
        sys.unraisablehook = lambda _: None
        code = INTERRUPTED
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; the next run continues from the last finished step\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
