"""What steps see: the application's paths, the volumes as they are or will be, and the image."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.command import run_ipavolume
from support.filesystems import Filesystems
from support.hostile import Witness
from support.steps import Scene, package
from support.worlds import MOUNTS, World, make_world

from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError, UnsafeVolumeError
from ipavolume.model.actions import Action
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.plan import assess
from ipavolume.plan.draft import draft
from ipavolume.steps import MakeLink, Remove, View, Write
from ipavolume.steps.views import MAX_READ_BYTES, TemplateView, VolumeView, place
from ipavolume.volume.tree import Tree

# -- places ------------------------------------------------------------------------------

PLACES = (
    VolumeSpec(mount="/data", template="/data-template", entries=("/etc/app", "/var", "/run/x")),
    VolumeSpec(mount="/logs", template="/logs-template", entries=("/var/log", "/etc/app/log")),
)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/etc/app/conf", "/data/etc/app/conf"),
        ("/var", "/data/var"),
        ("/var/lib/app", "/data/var/lib/app"),
        ("/var/log", "/logs/var/log"),
        ("/var/log/app", "/logs/var/log/app"),
        ("/var/logs", "/data/var/logs"),
        ("/etc/app/log/x", "/logs/etc/app/log/x"),
        ("/etc/app/logs", "/data/etc/app/logs"),
        ("/data/hostname", "/data/hostname"),
        ("/logs/x", "/logs/x"),
        ("/logs", "/logs"),
        ("/database", "/data/database"),
        ("/etc/other", "/data/etc/other"),
        ("/", "/data"),
    ],
)
def test_a_path_is_on_the_volume_whose_list_covers_it_most_closely(path: str, where: str) -> None:
    assert place(path, PLACES) == where


# -- looking -----------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A volume with one of everything in ``/etc/app``."""
    scene = Scene(
        top=tmp_path,
        lists={"/data": ("/etc/app", "/var"), "/logs": ("/var/log",)},
        packages=(package("app", "2-1", "application"), package("lib", "7-1")),
        recorded=(package("other", "5-1", "app"), package("app", "1-1")),
    )
    scene.put("etc/app/conf", "content\n")
    scene.put("etc/app/.hidden", "h")
    scene.put("etc/app/sub/file.conf", "12345")
    scene.link("etc/app/link", "conf")
    scene.link("etc/app/sub-link", "sub")
    os.mkfifo(scene.volume() / "etc/app/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(scene.volume() / "etc/app")
        server.bind("socket")
    os.chdir("/")
    (scene.volume() / ".ipavolume").mkdir()
    (scene.volume() / ".ipavolume/identity.json").write_text("{}")
    log = scene.volume("/logs") / "var/log/app.log"
    log.parent.mkdir(parents=True)
    log.write_text("log\n")
    return scene


@pytest.fixture
def views(scene: Scene) -> Iterator[tuple[VolumeView, TemplateView]]:
    """The views of the scene."""
    with scene.views() as opened:
        yield opened


def test_a_volume_is_seen_by_the_applications_paths(
    views: tuple[VolumeView, TemplateView],
) -> None:
    volume, _ = views
    assert volume.read("/etc/app/conf") == b"content\n"
    assert volume.read("/data/etc/app/conf") == b"content\n"
    assert volume.read("/var/log/app.log") == b"log\n"
    assert {name: volume.kind(f"/etc/app/{name}") for name in volume.list("/etc/app")} == {
        ".hidden": "file",
        "conf": "file",
        "fifo": "fifo",
        "link": "symlink",
        "socket": "other",
        "sub": "directory",
        "sub-link": "symlink",
    }
    assert volume.readlink("/etc/app/link") == "conf"
    assert volume.list("/var/log") == ("app.log",)
    assert volume.list("/data") == ("etc",)
    assert volume.list("/") == ("etc",)


def test_what_is_of_another_type_or_not_there_is_nothing(
    views: tuple[VolumeView, TemplateView],
) -> None:
    volume, _ = views
    for path in ("none", "none/at/all", "conf/below", "sub", "fifo", "socket", "link"):
        assert volume.read(f"/etc/app/{path}") is None
    for path in ("none", "none/at/all", "conf", "sub"):
        assert volume.readlink(f"/etc/app/{path}") is None
        assert volume.list(f"/etc/app/{path}") == (("file.conf",) if path == "sub" else ())
    assert volume.kind("/etc/app/none") is None
    assert volume.glob("/etc/app/none/*") == ()
    assert volume.size("/etc/app/none") == 0


def test_nothing_is_followed_on_a_volume(views: tuple[VolumeView, TemplateView]) -> None:
    volume, _ = views
    assert volume.kind("/etc/app/sub-link/file.conf") is None
    assert volume.read("/etc/app/sub-link/file.conf") is None
    assert volume.list("/etc/app/sub-link") == ()
    assert volume.glob("/etc/app/*/file.conf") == ("/etc/app/sub/file.conf",)


@pytest.mark.parametrize(
    "path",
    [
        *("/data/../{up}/etc/passwd", "/etc/app/../../../{up}/etc/passwd", "/etc/app/../app/conf"),
        *("/etc/app/./conf", "/etc/app/conf\0", "/.."),
    ],
)
def test_a_path_that_leads_up_again_leads_nowhere(
    views: tuple[VolumeView, TemplateView], path: str
) -> None:
    # A step may have read it in a file that a service can write.
    path = path.format(up="/".join([".."] * 40))
    for view in views:
        assert view.kind(path) is None
        assert view.read(path) is None
        assert view.readlink(path) is None
        assert view.list(path) == ()
        assert view.glob(f"{path}*") == ()
        assert view.size(path) == 0


def test_ipavolumes_own_directory_is_not_seen(views: tuple[VolumeView, TemplateView]) -> None:
    volume, _ = views
    assert volume.kind("/data/.ipavolume") is None
    assert volume.read("/data/.ipavolume/identity.json") is None
    assert volume.glob("/data/.*") == ()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/etc/app/*.conf", ()),
        ("/etc/app/*/*.conf", ("/etc/app/sub/file.conf",)),
        ("/etc/app/con?", ("/etc/app/conf",)),
        ("/etc/app/[a-c]onf", ("/etc/app/conf",)),
        ("/etc/app/s*", ("/etc/app/socket", "/etc/app/sub", "/etc/app/sub-link")),
        ("/etc/app/conf", ("/etc/app/conf",)),
        ("/etc/*/*/file.conf", ("/etc/app/sub/file.conf",)),
        ("/*/app/conf", ("/etc/app/conf",)),
        ("/data/etc/app/c*", ("/data/etc/app/conf",)),
        ("/var/log/*", ("/var/log/app.log",)),
        ("/etc/app/CONF", ()),
    ],
)
def test_patterns_match_within_names(
    views: tuple[VolumeView, TemplateView], pattern: str, found: tuple[str, ...]
) -> None:
    assert views[0].glob(pattern) == found


def test_sizes_are_summed_without_following(views: tuple[VolumeView, TemplateView]) -> None:
    volume, _ = views
    assert volume.size("/etc/app/sub") == 5
    assert volume.size("/etc/app/conf") == 8
    assert volume.size("/etc/app") == 5 + 8 + 1 + len("conf") + len("sub")


def test_free_space_is_that_of_the_volume(
    scene: Scene, views: tuple[VolumeView, TemplateView]
) -> None:
    volume, template = views
    st = os.statvfs(scene.volume())
    assert volume.free("/etc/app/none/yet") == pytest.approx(st.f_bavail * st.f_frsize, rel=0.2)
    assert template.free("/etc/app") == 0


def test_packages_are_the_recorded_and_the_images(
    views: tuple[VolumeView, TemplateView],
) -> None:
    volume, template = views
    assert volume.package("app") == "1-1"
    assert volume.package("lib") is None
    assert template.package("app") == "2-1"
    assert template.package("application") == "2-1"
    assert volume.os == ("fedora", "42")
    assert template.os == ("fedora", "43")


def test_a_view_knows_what_the_lists_keep(views: tuple[VolumeView, TemplateView]) -> None:
    for view in views:
        assert view.covers("/etc/app/conf")
        assert view.covers("/data/hostname")
        assert view.covers("/var/log")
        assert not view.covers("/etc")
        assert not view.covers("/etc/application")
        assert not view.covers("/usr/lib/x")


def test_a_huge_file_is_not_read_but_named(
    scene: Scene, views: tuple[VolumeView, TemplateView]
) -> None:
    path = scene.put("etc/app/huge")
    os.truncate(path, MAX_READ_BYTES)
    content = views[0].read("/etc/app/huge")
    assert content is not None
    assert len(content) == MAX_READ_BYTES
    os.truncate(path, MAX_READ_BYTES + 1)
    with pytest.raises(IpaVolumeError, match="'/etc/app/huge' is larger than") as caught:
        views[0].read("/etc/app/huge")
    assert caught.value.path == "/etc/app/huge"


def test_directories_without_an_end_do_not_exhaust_anything(
    scene: Scene, views: tuple[VolumeView, TemplateView]
) -> None:
    os.chdir(scene.volume() / "etc/app")
    try:
        # More than descriptors that a process may have, and longer than any path.
        for _ in range(1050):
            os.mkdir("directory")
            os.chdir("directory")
        os.chdir("/")
        with pytest.raises(UnsafeVolumeError, match="directories lie"):
            views[0].size("/etc/app")
        assert views[0].list("/etc/app/directory") == ("directory",)
    finally:
        os.chdir("/")
        # pytest would not come to an end with it.
        subprocess.run(["rm", "-rf", str(scene.volume() / "etc/app")], check=True, timeout=60)


def test_an_undecodable_name_is_seen(scene: Scene, views: tuple[VolumeView, TemplateView]) -> None:
    name = os.fsdecode(b"na\xffme")
    scene.put(f"etc/app/{name}", "odd")
    assert views[0].glob("/etc/app/na*") == (f"/etc/app/{name}",)
    assert views[0].read(f"/etc/app/{name}") == b"odd"


@pytest.mark.root
def test_planted_links_lead_no_view_off_the_volume(tmp_path: Path) -> None:
    scene = Scene(top=tmp_path)
    witness = Witness(tmp_path / "witness")
    scene.put("etc/app/file")
    os.link(witness.fifo, scene.volume() / "etc/app/fifo")
    scene.link("etc/app/secret", str(witness.secret))
    scene.link("etc/app/directory", str(witness.directory))
    witness.begin()
    with scene.views() as views:
        for view in views:
            for path in ("secret", "directory/seed", "directory", "fifo"):
                assert view.read(f"/etc/app/{path}") is None
            view.glob("/etc/app/*/*")
            view.size("/etc/app")
    witness.verify(linked=["/fifo"])


# -- the image -----------------------------------------------------------------------------


def image_file(scene: Scene, path: str, content: str = "image\n") -> Path:
    """Make a file in the image outside of its templates."""
    file = scene.image / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_the_image_is_seen_through_its_templates_where_lists_cover_a_path(scene: Scene) -> None:
    scene.ship("etc/app/conf", "shipped\n")
    image_file(scene, "usr/lib/app/library.so")
    image_file(scene, "etc/passwd", "root\n")
    (scene.image / "lib").symlink_to("usr/lib")
    (scene.image / "etc/app").symlink_to("/data/etc/app")
    with scene.views() as (_, template):
        assert template.read("/etc/app/conf") == b"shipped\n"
        assert template.kind("/etc/app") == "directory"
        assert template.list("/etc/app") == ("conf",)
        assert template.read("/usr/lib/app/library.so") == b"image\n"
        assert template.glob("/usr/lib*/app/*.so") == ("/usr/lib/app/library.so",)
        assert template.read("/lib/app/library.so") == b"image\n"
        assert template.readlink("/lib") == "usr/lib"
        assert template.list("/etc") == ("app", "passwd")
        assert template.kind("/usr/lib/none") is None
        assert template.kind("/etc/passwd/below") is None


def test_a_listed_path_that_the_template_has_not_is_not_looked_for_elsewhere(
    scene: Scene,
) -> None:
    image_file(scene, "etc/app/conf", "beside the volume\n")
    with scene.views() as (_, template):
        assert template.kind("/etc/app/conf") is None


@pytest.mark.parametrize("target", ["/data/etc/app", "../data/etc/app", "/data/etc/../etc/app"])
def test_no_link_of_the_image_leads_onto_a_volume(scene: Scene, target: str) -> None:
    scene.ship("etc/app/conf", "shipped\n")
    (scene.image / "data").symlink_to(scene.volume())
    (scene.image / "other").symlink_to(target)
    with scene.views() as (_, template):
        assert template.read("/other/conf") == b"shipped\n"


def test_links_of_the_image_stay_below_its_root(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside\n")
    (scene.image / "up").symlink_to("../../../.." + str(tmp_path))
    (scene.image / "circle").symlink_to("circle")
    with scene.views() as (_, template):
        assert template.read("/up/outside") is None
        assert template.kind("/circle/x") is None


# -- as it will be -------------------------------------------------------------------------


def test_what_a_step_will_have_done_is_seen(
    scene: Scene, views: tuple[VolumeView, TemplateView]
) -> None:
    volume, _ = views
    later = volume.after(
        [
            Write(path="/etc/app/new", content=b"new", reason="r"),
            Write(path="/etc/app/conf", content=b"other", reason="r"),
            MakeLink(path="/etc/app/unit", target="/somewhere", reason="r"),
            Remove(path="/etc/app/link", reason="r"),
            Remove(path="/etc/app/sub", reason="not empty"),
        ]
    )
    assert later.read("/etc/app/new") == b"new"
    assert later.read("/etc/app/conf") == b"other"
    assert later.readlink("/etc/app/unit") == "/somewhere"
    assert later.kind("/etc/app/unit") == "symlink"
    assert later.kind("/etc/app/link") is None
    assert later.kind("/etc/app/sub") == "directory"
    assert later.list("/etc/app") == (
        *(".hidden", "conf", "fifo", "new", "socket", "sub", "sub-link", "unit"),
    )
    assert later.size("/etc/app/new") == 3
    assert later.kind("/etc/app/new/below") is None
    last = later.after(
        [Remove(path="/etc/app/sub/file.conf", reason="r"), Remove(path="/etc/app/sub", reason="r")]
    )
    assert last.kind("/etc/app/sub") is None
    assert last.glob("/etc/app/sub/*") == ()
    assert volume.kind("/etc/app/new") is None
    assert (scene.volume() / "etc/app/link").is_symlink()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


def seen_through(view: View, top: str = "") -> dict[str, object]:
    """Return all that a view shows of the volumes."""
    result: dict[str, object] = {}
    pending = [f"/{mount}" for mount in MOUNTS]
    while pending:
        path = pending.pop()
        kind = view.kind(path)
        content: object = None
        if kind == "directory":
            pending += [f"{path}/{name}" for name in view.list(path)]
        elif kind == "file":
            content = view.read(path)
        elif kind == "symlink":
            content = view.readlink(path)
        result[path.removeprefix(top)] = kind, content
    return result


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.filesystem
@pytest.mark.slow
@pytest.mark.parametrize(
    ("volumes", "image"), [("edited", "two"), ("edited", "three"), ("empty", "one")]
)
def test_a_planned_upgrade_is_seen_as_it_comes_out(
    world: World, filesystem: Filesystems, volumes: str, image: str
) -> None:
    where = filesystem("tmpfs", 64)
    world.copy(volumes, where)
    root = str(world.image(image))
    options = Options(root=root, volumes={f"/{mount}": str(where / mount) for mount in MOUNTS})
    with Context(options) as context:
        facts = context.volumes.facts()
        plan = draft(context, assess.judge(context, facts), facts, looking=True).plan
        header = context.image.header
        with (
            TemplateView(context.image.templates(), header, context.image.tree) as template,
            Tree({mount: volume.fd for mount, volume in context.volumes.items()}) as tree,
        ):

            def view(planned: Sequence[Action] = ()) -> VolumeView:
                return VolumeView(
                    tree, header.volumes, (), ("", ""), planned=planned, template=template
                )

            before = seen_through(view())
            planned = seen_through(view(plan.actions))
            assert planned != before
            run_ipavolume(
                *("upgrade", "--root", root),
                *(f"--volume=/{mount}={where / mount}" for mount in MOUNTS),
            )
            tree.close()
            after = seen_through(view())
    for mount in MOUNTS:
        after.pop(f"/{mount}/build-id")
        planned.pop(f"/{mount}/build-id", None)
    assert planned == after
    assert len(after) > 20


def test_a_header_alone_makes_a_view(tmp_path: Path) -> None:
    (tmp_path / "t/etc").mkdir(parents=True)
    (tmp_path / "t/etc/x").write_text("x")
    fd = os.open(tmp_path / "t", os.O_RDONLY)
    header = ImageHeader(
        build_id="b", volumes=(VolumeSpec(mount="/data", template="/t", entries=("/etc",)),)
    )
    try:
        with TemplateView({"/data": fd}, header) as template:
            assert template.read("/etc/x") == b"x"
            assert template.kind("/usr") is None
            assert stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
