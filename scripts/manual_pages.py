"""Makes man pages of the manual and of the commands' help, for the wheel and the rpm.

ipavolume(1) has every command with its help; each topic of ``ipavolume manual`` is
ipavolume-TOPIC(7). Run as a program it writes them to a directory.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from docutils.core import publish_string
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROJECT = Path(__file__).resolve().parent.parent


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the pages into a wheel; hatchling finds it by this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages before a wheel is built, but not for an editable installation."""
        if version != "editable":
            for path in write(Path(self.directory) / "man"):
                section = path.suffix[1:]
                build_data["shared_data"][str(path)] = f"share/man/man{section}/{path.name}"


def write(directory: Path) -> Iterator[Path]:
    """Write every page to *directory*; yield their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted((PROJECT / "ipavolume/manual").glob("*.rst")):
        yield _write(directory / f"ipavolume-{path.stem}.7", path.read_text("utf-8"))
    yield _write(directory / "ipavolume.1", _commands())


def _write(path: Path, text: str) -> Path:
    title, _, rest = text.partition("\n")
    name = path.stem
    # The title of a page is its name, which docutils wants first.
    page = f"{name}\n{'=' * len(name)}\n\n{title}\n{'-' * len(title)}\n\n"
    page += f":Manual section: {path.suffix[1:]}\n\n" + rest.partition("\n")[2]
    settings = {"report_level": 2, "halt_level": 2, "input_encoding": "unicode"}
    made = publish_string(_deeper(page, title), writer="manpage", settings_overrides=settings)
    path.write_bytes(made)
    return path


def _deeper(page: str, title: str) -> str:
    """Give the chapters of a topic another underline than its subtitle has."""
    head, mark, rest = page.partition(f"{title}\n{'-' * len(title)}\n")
    return head + mark + re.sub(r"(?m)^-{3,}$", lambda line: "~" * len(line[0]), rest)


def _commands() -> str:
    """Return the page of the command as text: every command's help."""
    sys.path.insert(0, str(PROJECT))
    from ipavolume.cli.main import main

    parts = ["keep the state of a container in one volume across upgrades\n====\n\n"]
    settings = {**main.context_settings, "terminal_width": 80}
    with click.Context(main, info_name="ipavolume", **settings) as top:
        for name, command in (("", main), *sorted(main.commands.items())):
            if command.hidden:
                continue
            called = click.Context(command, info_name=name, parent=top) if name else top
            words = f"ipavolume {name}".strip()
            parts.append(f"{words}\n{'-' * len(words)}\n\n::\n\n")
            help_ = command.get_help(called).splitlines()
            parts.append("".join(f"    {line}".rstrip() + "\n" for line in help_) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    for made in write(Path(sys.argv[1])):
        print(made)
