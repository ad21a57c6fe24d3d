"""What was measured as a table, and what changed against an earlier one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from racing import Contestant


def named(kind: str, line: tuple[str, ...]) -> tuple[str, ...]:
    """Return a line of a table with the file system in the name of its row."""
    return (f"{kind}: {line[0]}" if line[0] else "", *line[1:])


HEAD = ("what", "contestant", "median s", "min..max s", "ratio", "CPU s", "MiB", "")


def table(
    row: str, contestants: Sequence[Contestant], reference: str, ours: str
) -> list[tuple[str, ...]]:
    """Return the lines for one race; the ratio is against *reference*."""
    base = next(one for one in contestants if one.name == reference).seconds()
    lines: list[tuple[str, ...]] = []
    for one in contestants:
        times = [measured.seconds for measured in one.runs]
        spread = f"{min(times):.4f}..{max(times):.4f}"
        mark = "<--" if one.name == ours else ""
        lines.append(
            (row, one.name, f"{one.seconds():.4f}", spread, f"{one.seconds() / base:.2f}",
             f"{one.cpu_s():.3f}", f"{one.peak_kib() >> 10}", mark)
        )  # fmt: skip
        row = ""
    print(aligned(lines), end="", file=sys.stderr, flush=True)
    return lines


def read_table(text: str) -> dict[tuple[str, str], tuple[float, float, bool]]:
    """Return ratio, CPU seconds and whether it is ours, by row and contestant, of a table."""
    found = {}
    row = ""
    # What follows an empty line is what changed against an earlier table.
    for line in text.partition("\n\n")[0].splitlines()[1:]:
        cells = re.split(" {2,}", line)
        row = cells[0] or row
        found[row, cells[1]] = float(cells[4]), float(cells[5]), cells[-1] == "<--"
    return found


def changes(before: str, after: str) -> list[str]:
    """Return a line for each row of ours that both tables have: ratio and CPU, then and now."""
    earlier = read_table(before)
    return [
        f"{row}: ratio {earlier[row, name][0]:.2f} -> {ratio:.2f}, "
        f"CPU {earlier[row, name][1]:.3f} -> {cpu_s:.3f} s"
        for (row, name), (ratio, cpu_s, is_ours) in read_table(after).items()
        if is_ours and (row, name) in earlier
    ]


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Return *lines* as a table, two spaces or more between its columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
