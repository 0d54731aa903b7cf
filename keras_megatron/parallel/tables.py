"""Tables of this package's reports, as text."""

import io

import rich.box
import rich.console
import rich.measure
import rich.table

_UNITS = ("B", "kB", "MB", "GB")


def new_table(title: str) -> rich.table.Table:
    """Return an empty table."""
    return rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)


def as_text(table: rich.table.Table, least_width: int = 80) -> str:
    """Return a table as text, as wide as the terminal, but of a least width, and nothing cut."""
    console = rich.console.Console(file=io.StringIO())
    console.width = 10_000  # to measure without a limit
    whole = rich.measure.Measurement.get(console, console.options, table).maximum
    console.width = max(whole, least_width)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def amount(count: int, high: int | None = None) -> str:
    """Return a number of bytes for people, in powers of 1000, or a range up to another one."""
    largest, unit = count if high is None else high, 0
    while largest >= 1000 and unit < len(_UNITS) - 1:
        largest, unit = largest / 1000, unit + 1
    numbers = " - ".join(_digits(n / 1000**unit) for n in (count, high) if n is not None)
    return f"{numbers} {_UNITS[unit]}"


def _digits(number: float) -> str:
    """Write three digits, or all of a large number's."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
