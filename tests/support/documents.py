"""What users read: README and the topics of the manual, and what these show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from support.command import PROJECT

README: Final = (PROJECT / "README.rst").read_text(encoding="utf-8")
MANUAL: Final = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((PROJECT / "ipavolume/manual").glob("*.rst"))
}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield each literal block of *text* without its indentation, after what announces it."""
    for match in re.finditer(r"((?:^.+\n)*^.*::\n)\n((?:^(?:    .*)?\n)+)", text, re.MULTILINE):
        block = re.sub(r"^    ", "", match.group(2), flags=re.MULTILINE)
        yield match.group(1), block.strip("\n") + "\n"


def chapter(text: str, title: str) -> str:
    """Return the chapter of *text* that has this *title*."""
    _, _, rest = text.partition(f"\n{title}\n---")
    return re.split(r"\n\n\n(?=\S)", rest)[0] + "\n"
