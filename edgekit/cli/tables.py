"""Tables and paragraphs on standard output, at most as wide as the terminal, or `WIDTH` where output goes elsewhere.

rich wraps cells, aligns and colours them. How wide the columns are is counted here: rich narrows a column below its longest
word and then cuts the word, and a path that somebody pipes on must be whole. Lines end without spaces and, where nobody sees
colours, are plain text: the same wherever they are made.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence
from textwrap import wrap

WIDTH = 80


def width() -> int:
    """How many columns a line may have."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def table_lines(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), wraps: Collection[int] = (), indent: int = 0
) -> list[str]:
    """Rows of cells, which may be coloured, as aligned lines.

    right: the columns that are flush right. wraps: those that become narrower, at their spaces, where the table is too wide;
    all others stay whole, and a table that cannot become narrow enough is wider.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[Text.from_ansi(cell) for cell in row] for row in rows]
    if not cells:
        return []
    columns = [[row[place] for row in cells] for place in range(len(cells[0]))]
    widths = _narrowed(columns, wraps, width() - indent)
    table = Table.grid(padding=(0, 2, 0, 0))
    for place, most in enumerate(widths):
        table.add_column(width=most, justify="right" if place in right else "left", no_wrap=place not in wraps)
    for row in cells:
        table.add_row(*row)
    console = Console(
        file=io.StringIO(), force_terminal=sys.stdout.isatty(), width=sum(widths) + 2 * len(widths), highlight=False
    )
    with console.capture() as told:
        console.print(table)
    return [f"{' ' * indent}{line.rstrip()}" for line in told.get().splitlines()]


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of a text, the first after `first`, the others after `rest` (as many spaces); words and paths stay whole."""
    return wrap(
        text,
        width(),
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _narrowed(columns: Sequence[Sequence[object]], wraps: Collection[int], room: int) -> list[int]:
    """The width of each column: its widest cell's, less where the table needs it, but never below its longest word's."""
    from rich.cells import cell_len

    widths = [max(cell_len(str(cell)) for cell in column) for column in columns]
    least = [
        max(cell_len(word) for cell in column for word in [*str(cell).split(), ""]) if place in wraps else most
        for place, (column, most) in enumerate(zip(columns, widths, strict=True))
    ]
    while sum(widths) + 2 * (len(widths) - 1) > room:
        narrows = [place for place, most in enumerate(widths) if most > max(least[place], 1)]
        if not narrows:
            break
        widths[max(narrows, key=widths.__getitem__)] -= 1
    return widths
