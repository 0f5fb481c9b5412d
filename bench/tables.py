"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> None:
    """Prints a table, the first column flush left."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}\n")
    for line in (list(columns), ["-" * width for width in widths], *cells):
        print(
            "  "
            + "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True)))
        )
    for note in notes:
        print(f"  {note}")
    print(flush=True)


def _text(cell: object) -> str:
    match cell:
        case None:
            return ""
        case float() if cell >= 100:
            return f"{cell:,.0f}"
        case float():
            return f"{cell:.2f}"
        case int():
            return f"{cell:,}"
        case _:
            return str(cell)
