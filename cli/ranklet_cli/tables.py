"""Columns of text for a terminal."""

from collections.abc import Container, Sequence


def align(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """Return one line per row, with columns padded to equal width.

    Args:
        rows: Cells of text, the same number in each row.
        left: Columns that are aligned to the left; the others are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
