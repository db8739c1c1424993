"""Starts the command line; an interrupt at any moment, imports included, ends in one line and exit code 130."""

import sys


def main() -> None:
    """Run the command that sys.argv names and exit with its code."""
    try:
        from edgekit.cli import run_command_line

        code = run_command_line()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the next run continues from the last finished step\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
