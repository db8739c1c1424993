"""Starts the command line; an interrupt at any moment, imports included, ends in one line and exit code 130."""

import _thread
import signal
import sys
import threading
from types import FrameType
from typing import Any

INTERRUPTED = 130
# What an interrupt leaves of a command that makes steps, and of `run`, which makes none.
CONTINUES = "interrupted; the next run continues from the last finished step"
ANEW = "interrupted; a conversation or an answer is not kept, the next one begins anew"


class _Interrupt:
    """Remembers a Ctrl-C: libraries that are being imported turn it into errors of their own."""

    seen = ended = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.ended:
            return
        self.seen = True
        sys.unraisablehook = self._again
        raise KeyboardInterrupt

    def _again(self, dropped: Any) -> None:
        """Python drops what is raised in finalizers; what a half-imported library says there adds nothing to the one line."""
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            soon = threading.Timer(0.01, _interrupt)
            soon.daemon = True
            soon.start()


def _interrupt() -> None:
    """A Ctrl-C that also ends what the main thread waits in."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def main() -> None:
    """Run the command that sys.argv names and exit with its code."""
    interrupt = _Interrupt()
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        from edgekit.cli import run_command_line

        code = run_command_line()
        interrupt.ended = True
    except BaseException as failed:
        interrupt.ended = True
        if not (interrupt.seen or isinstance(failed, KeyboardInterrupt)):
            raise
        code = INTERRUPTED
    # The command has ended; while the libraries tidy up, a Ctrl-C has nothing to stop any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if interrupt.seen:
        code = INTERRUPTED
    if code == INTERRUPTED:
        sys.stderr.write(f"{ANEW if sys.argv[1:2] == ['run'] else CONTINUES}\n")
        # A Ctrl-C within code that is a text (what makes dataclasses) leaves a mark by which `python -m` ends itself with that
        # signal in place of the code; the next text takes it away (CPython, Python/pythonrun.c, run_eval_code_obj).
        exec("")  # noqa: S102 - it is empty
    sys.exit(code)


if __name__ == "__main__":
    main()
