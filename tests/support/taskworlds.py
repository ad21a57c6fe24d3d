"""Images with steps of their own, a volume, and containers of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from support import inside
from support.command import Result
from support.images import Image, Packaged, build_rpm
from support.upgrades import Site

LISTS = {"/data": ["/etc/svc/", "/var/lib/svc/"]}
OWN = "/etc/ipavolume/upgrade_steps"
LOG = "var/lib/svc/log"

STEP = '''"""{summary}.

Symptom: a test sees nothing.

Source: this test.
"""

from ipavolume.steps import Command, MakeLink, Refuse, Remove, Warn, Write

COMPONENT = "svc"
APPLIES_FROM = "{applies}"
WHEN = "{when}"
PHASE = "{phase}"


def plan(volume, template):
{body}
'''


def step(
    body: str,
    *,
    summary: str = "Does what a test wants",
    applies: str = "",
    when: str = "upgrade",
    phase: str = "online",
) -> str:
    """Return the text of a step."""
    lines = "\n".join(f"    {line}" if line else "" for line in body.strip().splitlines())
    return STEP.format(summary=summary, applies=applies, when=when, phase=phase, body=lines)


def logs(word: str) -> str:
    """Return the body of a step that writes *word* to a log on the volume, once."""
    return f'''
if b"{word}\\n" in (volume.read("/{LOG}") or b""):
    return
yield Command(words=("sh", "-c", "echo {word} >>/data/{LOG}"), reason="to be seen")
'''


class World:
    """Two or three images, a volume, and containers of them."""

    def __init__(
        self,
        top: Path,
        rpms: Mapping[str, Path],
        lists: Mapping[str, Sequence[str]] = LISTS,
    ) -> None:
        """Take an empty directory, the packages by their version, and the path lists."""
        self.site = Site(top=top)
        self._rpms = rpms
        self._lists = lists

    def image(
        self,
        version: str,
        steps: Mapping[str, str],
        *,
        config: str = "",
        edit: Callable[[Image], None] | None = None,
    ) -> Image:
        """Make the image of a version, with steps of its own by name.

        A letter behind the version is for another image of the same packages.
        """

        def write_steps(image: Image) -> None:
            if edit is not None:
                edit(image)
            for name, text in steps.items():
                image.write(f"{OWN}/{name}.py", text)

        return self.site.image(
            f"v{version}",
            [self._rpms[version.rstrip(ascii_lowercase)]],
            lists=self._lists,
            config=config,
            edit=write_steps,
        )

    @property
    def volume(self) -> Path:
        """The volume's directory."""
        return self.site.volume()

    def run(
        self,
        image: Image,
        *words: str,
        status: int = 0,
        env: Mapping[str, str] | None = None,
        before: str = "",
        layer: Path | None = None,
    ) -> Result:
        """Run ipavolume as process 1 of a container; *before* is shell run in it before.

        With *layer* what is written outside the volume is kept there for a further run.
        """
        argv = [*inside.IPAVOLUME, *words]
        if before:
            argv = ["sh", "-ec", f'{before}; exec "$@"', "-", *argv]
        done = inside.run(image.root, self.volume, argv, env=env, layer=layer)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def populate(self) -> None:
        """Populate the volume by the first image, which has no steps of its own."""
        self.run(self.image("1", {}), "upgrade", "-q")

    def log(self) -> list[str]:
        """Return what steps wrote to their log."""
        path = self.volume / LOG
        return path.read_text().splitlines() if path.exists() else []

    def last_run(self) -> dict[str, Any]:
        """Return the last run of the history."""
        run = self.site.history()[-1]
        assert isinstance(run, dict)
        return run

    def build_id(self) -> str | None:
        """Return the recorded id."""
        path = self.volume / "build-id"
        return path.read_text().strip() if path.exists() else None


def build_packages(top: Path) -> Mapping[str, Path]:
    """Build the package svc in three versions."""
    return {
        version: build_rpm(
            top,
            "svc",
            [
                Packaged(path="/etc/svc/svc.conf", content=f"version {version}", words="%config"),
                Packaged(path="/var/lib/svc", directory=True),
            ],
            version=version,
        )
        for version in ("1", "2", "3")
    }
