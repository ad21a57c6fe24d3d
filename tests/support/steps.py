"""Steps in an image tree, and volumes that they look at and change."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipavolume.image.tree import ImageTree
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.model.packages import Package, Provide
from ipavolume.model.paths import OWN_STEPS, SHIPPED_STEPS
from ipavolume.steps import Declaration, MakeLink, Remove, Step, StepAction, Write
from ipavolume.steps.declaration import find_steps
from ipavolume.steps.loading import load_step
from ipavolume.steps.perform import perform_file_action
from ipavolume.steps.views import TemplateView, VolumeView
from ipavolume.volume.members import Volume, open_volume
from ipavolume.volume.tree import Tree
from support.command import PROJECT

RUN: Final = "20261122-120000"
NOTHING: Final = "def plan(volume, template):\n    return ()\n"


def step_text(
    *,
    summary: str = "Do something.",
    component: str = "app",
    applies_from: str = "",
    when: str = "upgrade",
    phase: str = "offline",
    body: str = NOTHING,
    imports: str = "",
) -> str:
    """Return the source of a step that keeps to all rules."""
    return (
        f'"""{summary}\n\nWhat goes wrong without it.\n"""\n{imports}\n'
        f"COMPONENT = {component!r}\nAPPLIES_FROM = {applies_from!r}\n"
        f"WHEN = {when!r}\nPHASE = {phase!r}\n\n\n{body}"
    )


def put_step(root: Path, name: str, text: str | bytes = "", *, own: bool = False) -> Path:
    """Write a step into an image tree; without a text one that does nothing."""
    path = root / (OWN_STEPS if own else SHIPPED_STEPS).lstrip("/") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text or step_text()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def steps_in(root: Path) -> dict[str, Declaration]:
    """Return the declarations of the steps in an image tree by name, in their order."""
    with ImageTree(str(root), {}) as tree:
        return {found.name: found for found in find_steps(tree)}


def loaded(root: Path, name: str) -> Step:
    """Return one of the steps, ready to be called."""
    with ImageTree(str(root), {}) as tree:
        (declaration,) = (found for found in find_steps(tree) if found.name == name)
        return load_step(tree, declaration)


def package(name: str, version: str = "1-1", *provides: str) -> Package:
    """Return a package; *version* is ``version-release``."""
    number, _, release = version.partition("-")
    return Package(
        name=name,
        epoch=0,
        version=number,
        release=release,
        arch="noarch",
        provides=tuple(Provide(name=one) for one in (name, *provides)),
    )


@dataclass(kw_only=True)
class Scene:
    """An image with templates, and volumes.

    Attributes:
        top: The directory in which all is made.
        lists: The listed paths by mount.
        packages: The packages of the image.
        recorded: Those recorded on the volumes.
        image_os: The image's release.
    """

    top: Path
    lists: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"/data": ("/etc", "/var")})
    packages: tuple[Package, ...] = ()
    recorded: tuple[Package, ...] = ()
    image_os: tuple[str, str] = ("fedora", "43")

    def __post_init__(self) -> None:
        """Make the directories."""
        for mount in self.lists:
            self.volume(mount).mkdir(parents=True, exist_ok=True)
            (self.image / f"{mount[1:]}-template").mkdir(parents=True, exist_ok=True)

    @property
    def image(self) -> Path:
        """Root of the image tree."""
        return self.top / "image"

    def volume(self, mount: str = "/data") -> Path:
        """Return where a volume is."""
        return self.top / "volumes" / mount[1:]

    @property
    def mounts(self) -> tuple[VolumeSpec, ...]:
        """The volumes as the image declares them."""
        return tuple(
            VolumeSpec(mount=mount, template=f"{mount}-template", entries=tuple(entries))
            for mount, entries in self.lists.items()
        )

    def put(self, path: str, content: str | bytes = "x\n", *, mode: int = 0o644) -> Path:
        """Make a file on the volume; *path* is relative to the primary volume's root."""
        return _put(self.volume() / path, content, mode)

    def ship(self, path: str, content: str | bytes = "x\n") -> Path:
        """Make a file in the template of the primary volume."""
        return _put(self.image / "data-template" / path, content, 0o644)

    def link(self, path: str, target: str) -> Path:
        """Make a symbolic link on the volume."""
        link = self.volume() / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        return link

    @contextmanager
    def volumes(self) -> Iterator[dict[str, Volume]]:
        """Open the volumes."""
        opened = {mount: open_volume(mount, str(self.volume(mount))) for mount in self.lists}
        try:
            yield opened
        finally:
            for volume in opened.values():
                os.close(volume.fd)

    @contextmanager
    def views(self) -> Iterator[tuple[VolumeView, TemplateView]]:
        """Open the views that steps get."""
        header = ImageHeader(
            build_id="new",
            os_id=self.image_os[0],
            os_version=self.image_os[1],
            packages=self.packages,
            volumes=self.mounts,
        )
        templates = {
            spec.mount: os.open(self.image / spec.template[1:], os.O_RDONLY) for spec in self.mounts
        }
        try:
            with (
                self.volumes() as volumes,
                ImageTree(str(self.image), {}) as tree,
                TemplateView(templates, header, tree) as template,
                Tree({mount: volume.fd for mount, volume in volumes.items()}) as files,
            ):
                yield (
                    VolumeView(files, self.mounts, self.recorded, ("fedora", "42")),
                    template,
                )
        finally:
            for fd in templates.values():
                os.close(fd)

    def plan(self, step: Step) -> tuple[StepAction, ...]:
        """Return what a step has to do here."""
        with self.views() as (volume, template):
            return tuple(step.plan(volume, template))

    def perform(self, *actions: StepAction, run: str = RUN) -> list[str | None]:
        """Carry out the file actions among *actions*; return where copies were saved."""
        with self.volumes() as volumes:
            return [
                perform_file_action(action, volumes, self.mounts, run=run)
                for action in file_actions(actions)
            ]

    def saved(self, path: str, *, run: str = RUN) -> Path:
        """Return where the copy of what was at *path* on the primary volume is."""
        return self.volume() / ".ipavolume/saved" / run / path


def file_actions(actions: Iterable[StepAction]) -> list[Write | Remove | MakeLink]:
    """Return those that change files."""
    return [action for action in actions if isinstance(action, Write | Remove | MakeLink)]


def _put(path: Path, content: str | bytes, mode: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def ship(root: Path) -> tuple[str, ...]:
    """Put this project's steps into an image tree, and return their names."""
    names = []
    for path in sorted((PROJECT / "upgrade_steps").glob("s*.py")):
        put_step(root, path.name, path.read_bytes())
        names.append(path.stem)
    return tuple(names)
