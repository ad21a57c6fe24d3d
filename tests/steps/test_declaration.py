"""Upgrade steps as they are found in an image, and which of them a run asks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import PROJECT, clean_environment, run_ipavolume
from support.images import Image, Packaged, age, build_rpm, make_image, picture
from support.steps import NOTHING, Scene, loaded, put_step, step_text, steps_in

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.model.paths import OWN_STEPS, SHIPPED_STEPS
from ipavolume.steps import Command, Declaration, MakeLink, Phase, When, Write
from ipavolume.steps.declaration import MAX_STEP_BYTES, applies, find_steps
from ipavolume.steps.loading import load_step
from ipavolume.steps.views import RollbackVolumeView
from ipavolume.volume.tree import Tree


def refused(root: Path) -> str:
    """Return what is said of the faulty steps in an image."""
    with pytest.raises(ConfigurationError) as caught:
        steps_in(root)
    assert caught.value.exit_status == 78
    return str(caught.value)


# -- finding -----------------------------------------------------------------------------


def test_an_image_without_steps_has_none(tmp_path: Path) -> None:
    assert steps_in(tmp_path) == {}


def test_steps_of_both_directories_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("s9000_last.py", "s0300_second.py", "s0100_first.py"):
        put_step(tmp_path, name)
    put_step(tmp_path, "s5000_ours.py", own=True)
    assert list(steps_in(tmp_path)) == ["s0100_first", "s0300_second", "s5000_ours", "s9000_last"]


def test_a_declaration_holds_what_the_file_says_of_itself(tmp_path: Path) -> None:
    text = step_text(
        summary="Drop caches.",
        component="sssd-common",
        applies_from=">=2,<3",
        when="start",
        phase="online",
        body=f"{NOTHING}\n\ndef verify(volume):\n    return ()\n"
        "\n\ndef going_back(volume):\n    return ()\n",
    )
    put_step(tmp_path, "s0300_drop.py", text)
    found = steps_in(tmp_path)["s0300_drop"]
    assert found.source == f"{SHIPPED_STEPS}/s0300_drop.py"
    assert (found.summary, found.component, found.applies_from) == (
        *("Drop caches.", "sssd-common", ">=2,<3"),
    )
    assert (found.when, found.phase, found.verifies) == ((When.START,), Phase.ONLINE, True)
    assert found.judges_going_back
    assert not found.masked
    assert found.replaces == ""


def test_a_step_may_be_for_several_kinds_of_runs(tmp_path: Path) -> None:
    text = step_text().replace("'upgrade'", "('upgrade', 'populate')")
    put_step(tmp_path, "s0300_drop.py", text)
    assert set(steps_in(tmp_path)["s0300_drop"].when) == {When.UPGRADE, When.POPULATE}


def test_finding_steps_executes_nothing_of_them(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    imports = f"from pathlib import Path\nX = Path({str(witness)!r}).touch()\n"
    put_step(tmp_path, "s0300_evil.py", step_text(imports=imports))
    put_step(tmp_path, "s0400_calls.py", step_text(imports="X = 1 / 0\n"))
    assert "imports pathlib" in refused(tmp_path)
    assert not witness.exists()


def test_a_step_of_ones_own_replaces_the_shipped_one_of_the_same_name(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_drop.py", step_text(summary="Theirs."))
    put_step(tmp_path, "s0300_drop.py", step_text(summary="Ours."), own=True)
    found = steps_in(tmp_path)["s0300_drop"]
    assert found.summary == "Ours."
    assert found.source == f"{OWN_STEPS}/s0300_drop.py"
    assert found.replaces == f"{SHIPPED_STEPS}/s0300_drop.py"


def test_a_link_to_dev_null_masks_a_step(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_drop.py")
    put_step(tmp_path, "s5000_ours.py", own=True)
    (tmp_path / OWN_STEPS[1:] / "s0300_drop.py").symlink_to("/dev/null")
    found = steps_in(tmp_path)
    assert found["s0300_drop"].masked
    assert not found["s5000_ours"].masked
    asked, why = applies(
        found["s0300_drop"], when=When.UPGRADE, recorded=lambda _: "1-1", known=True, again=True
    )
    assert not asked
    assert why == f"masked by {OWN_STEPS}/s0300_drop.py"


def test_a_mask_over_a_step_of_an_image_that_this_one_is_derived_from_is_fine(
    tmp_path: Path,
) -> None:
    link = tmp_path / OWN_STEPS[1:] / "s5000_theirs.py"
    link.parent.mkdir(parents=True)
    link.symlink_to("/dev/null")
    assert steps_in(tmp_path) == {}


@pytest.mark.parametrize("name", ["README.rst", "README", ".s0300_drop.py.new", "__pycache__"])
def test_what_may_stand_beside_steps_is_no_step(tmp_path: Path, name: str) -> None:
    put_step(tmp_path, "s0300_drop.py")
    put_step(tmp_path, name, "no Python at all (")
    assert list(steps_in(tmp_path)) == ["s0300_drop"]


# -- faults ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("s300_drop.py", "a step is named"),
        ("s0300drop.py", "a step is named"),
        ("s0300_Drop.py", "a step is named"),
        ("s0300_drop.pyc", "a step is named"),
        ("s0300_drop.py\n", "a step is named"),
        ("drop.py", "a step is named"),
        ("s0099_early.py", "0100-4999 and 9000-9999"),
        ("s5000_ours.py", "0100-4999 and 9000-9999"),
        ("s8999_ours.py", "0100-4999 and 9000-9999"),
    ],
)
def test_a_shipped_step_with_a_wrong_name_is_a_fault(tmp_path: Path, name: str, said: str) -> None:
    put_step(tmp_path, name)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("name", ["s4999_ours.py", "s9000_ours.py", "s0300_other.py"])
def test_a_step_of_ones_own_with_a_shipped_number_is_a_fault_unless_it_replaces(
    tmp_path: Path, name: str
) -> None:
    put_step(tmp_path, "s0300_drop.py")
    put_step(tmp_path, name, own=True)
    assert "replaces no shipped step" in refused(tmp_path)
    put_step(tmp_path, name)
    if name != "s0300_other.py":
        assert steps_in(tmp_path)[name[:-3]].replaces


def test_a_mask_that_masks_nothing_is_a_fault(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_drop.py")
    link = tmp_path / OWN_STEPS[1:] / "s0300_dorp.py"
    link.parent.mkdir(parents=True)
    link.symlink_to("/dev/null")
    assert "masks no shipped step" in refused(tmp_path)


def test_two_steps_with_one_number_are_a_fault(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_drop.py")
    put_step(tmp_path, "s0300_other.py")
    said = refused(tmp_path)
    assert "s0300_drop.py" in said
    assert f"{SHIPPED_STEPS}/s0300_other.py: " in said
    assert "the same number" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("COMPONENT = 'a'\n" + NOTHING, "has no docstring"),
        ('"""   """\n', "has no docstring"),
        (step_text(summary="A\x07 bell."), "cannot be printed"),
        (step_text().replace("COMPONENT", "COMPONENTS"), "COMPONENT: is missing"),
        (step_text().replace("APPLIES_FROM", "APPLIES"), "APPLIES_FROM: is missing"),
        (step_text().replace("WHEN", "THEN"), "WHEN: is missing"),
        (step_text().replace("PHASE", "PHRASE"), "PHASE: is missing"),
        (step_text(component=""), "'' is not the name of a package"),
        (step_text(component="two words"), "'two words' is not the name of a package"),
        (step_text(applies_from="4.9"), "is not a range"),
        (step_text(when="sometimes"), "'sometimes' is none of upgrade, populate, start"),
        (step_text().replace("'upgrade'", "('upgrade', 'now')"), "'now' is none of upgrade"),
        (step_text().replace("'upgrade'", "()"), "WHEN: has to be a string or a tuple"),
        (step_text().replace("'upgrade'", "('upgrade', 1)"), "WHEN: has to be a string or a"),
        (step_text(phase="halfline"), "'halfline' is none of offline, online"),
        (step_text(phase="running"), "WHEN: has to be 'start' where PHASE is 'running'"),
        (step_text().replace("'offline'", "'off' + 'line'"), "PHASE: has to be a string"),
        (step_text(imports="WHEN = 'start'"), "WHEN: is given twice"),
        (step_text(body="def plans(volume, template):\n    return ()\n"), "plan: has to be a"),
        (step_text(body="plan = 3\n"), "plan: has to be a function of 2 parameters"),
        (step_text(body="def plan(volume):\n    return ()\n"), "plan: takes two parameters"),
        (step_text(body="def plan(a, b, c):\n    return ()\n"), "plan: takes two parameters"),
        (step_text(body="def plan(a, b=1):\n    return ()\n"), "plan: takes two parameters"),
        (step_text(body="def plan(*a):\n    return ()\n"), "plan: takes two parameters"),
        (step_text(body="async def plan(a, b):\n    return ()\n"), "cannot wait"),
        (step_text(body=NOTHING + "def verify():\n    return ()\n"), "verify: takes one"),
        (step_text(body="import re\n@re.compile\n" + NOTHING), "plan: has a decorator"),
        (step_text(imports="import os"), "imports os;"),
        (step_text(imports="from subprocess import run"), "imports subprocess;"),
        (step_text(imports="from . import other"), "imports .;"),
        (step_text(imports="import ipavolume.linux.files"), "imports ipavolume.linux.files;"),
        (step_text(body="def plan(a, b):\n    import os.path\n    return ()\n"), "imports os.path"),
        (step_text(body="def plan(a, b):\n    open('/x')\n    return ()\n"), "open: a step only"),
        (step_text(body=NOTHING + "__import__('os')\n"), "__import__: a step only"),
        (step_text(body=NOTHING + "for i in ():\n    pass\n"), "only imports, constants"),
        (step_text(body=NOTHING + "plan(1, 2)\n"), "only imports, constants"),
        (step_text(body="def plan(a, b):\n    return al\n"), ":13: al: is not defined"),
        (step_text(body=NOTHING + "def other():\n    return [o for p in ()]\n"), "o: is not defi"),
        (step_text(imports="from ipavolume.steps import Wirte"), "Wirte: ipavolume.steps has"),
        (
            step_text(
                imports="from ipavolume.steps import Write as W",
                body="def plan(a, b):\n    return [W(path='/a', contents=b'', reason='r')]\n",
            ),
            "W: has no contents; it takes path, content, reason, mode, keep_copy",
        ),
        (
            step_text(
                imports="from ipavolume.steps import Remove",
                body="def plan(a, b):\n    return [Remove(path='/a')]\n",
            ),
            "Remove: reason is missing",
        ),
        (
            step_text(
                imports="from ipavolume.steps import Remove",
                body="def plan(a, b):\n    return [Remove('/a', 'r')]\n",
            ),
            "Remove: takes path, reason, keep_copy, each by its name",
        ),
        (
            step_text(
                body="def plan(a, b):\n    try:\n        return ()\n    except:\n        pass\n"
            ),
            "catches every exception",
        ),
        (step_text(body="def plan(a, b:\n"), "was never closed"),
        (step_text(body=NOTHING + "# \udcff\n").encode(errors="surrogateescape"), "not UTF-8"),
        (step_text().encode() + b"\0", "null bytes"),
        (b"(" * 100_000, "too many nested parentheses"),
        (b"#" * (MAX_STEP_BYTES + 1), "is larger than"),
    ],
)
def test_what_is_wrong_in_a_step_is_said_with_its_name(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    put_step(tmp_path, "s0300_faulty.py", text)
    message = refused(tmp_path)
    assert said in message
    assert f"{SHIPPED_STEPS}/s0300_faulty.py" in message


def test_every_fault_of_every_step_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_one.py", step_text(when="never", phase="none", imports="import os"))
    put_step(tmp_path, "s5000_two.py", step_text(component="?"), own=True)
    put_step(tmp_path, "nonsense", own=True)
    message = refused(tmp_path)
    for said in (
        f"{SHIPPED_STEPS}/s0300_one.py:5: imports os;",
        f"{SHIPPED_STEPS}/s0300_one.py:8: WHEN: 'never'",
        f"{SHIPPED_STEPS}/s0300_one.py:9: PHASE: 'none'",
        f"{OWN_STEPS}/s5000_two.py:6: COMPONENT: '?'",
        f"'{OWN_STEPS}/nonsense': a step is named",
    ):
        assert said in message


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_regular_file_is_a_fault(tmp_path: Path, make: Callable[[Path], object]) -> None:
    put_step(tmp_path, "s0100_good.py")
    make(tmp_path / SHIPPED_STEPS[1:] / "s0300_drop.py")
    assert "s0300_drop.py: is not a regular file" in refused(tmp_path)


def test_a_link_to_anything_but_dev_null_is_a_fault(tmp_path: Path) -> None:
    put_step(tmp_path, "s0100_good.py")
    (tmp_path / SHIPPED_STEPS[1:] / "s0200_link.py").symlink_to("s0100_good.py")
    (tmp_path / SHIPPED_STEPS[1:] / "s0300_null.py").symlink_to("/dev/null")
    message = refused(tmp_path)
    assert "s0200_link.py: is a symbolic link to 's0100_good.py'" in message
    assert "s0300_null.py: is a symbolic link" in message


def test_links_of_the_image_lead_to_its_steps_where_its_containers_see_them(
    tmp_path: Path,
) -> None:
    put_step(tmp_path, "s0100_good.py")
    (tmp_path / "usr/share/ipavolume").rename(tmp_path / "opt")
    (tmp_path / "usr/share/ipavolume").symlink_to("/middle")
    (tmp_path / "middle").symlink_to("../../opt")
    assert list(steps_in(tmp_path)) == ["s0100_good"]
    assert loaded(tmp_path, "s0100_good").declaration.name == "s0100_good"


@pytest.mark.parametrize("link", ["usr/share/ipavolume", "usr/share/ipavolume/upgrade_steps"])
def test_steps_on_a_volume_or_in_its_template_are_refused(tmp_path: Path, link: str) -> None:
    put_step(tmp_path, "s0100_good.py")
    (tmp_path / "data").mkdir()
    (tmp_path / link).rename(tmp_path / "data/steps")
    (tmp_path / link).symlink_to("/data/steps")
    with (
        ImageTree(str(tmp_path), {}) as tree,
        pytest.raises(ConfigurationError, match="no step comes from a volume"),
    ):
        find_steps(tree, mounts=["/data"])
    (tmp_path / "data").rename(tmp_path / "data-template")
    with (
        ImageTree(str(tmp_path), {"/data": "/data-template"}) as tree,
        pytest.raises(ConfigurationError, match="leads to '/data-template/steps"),
    ):
        find_steps(tree)


# -- in an image -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package, for images to have one."""
    files = [Packaged(path="/etc/app.conf", content="x")]
    return build_rpm(tmp_path_factory.mktemp("rpm"), "app", files)


@pytest.fixture
def image(tmp_path: Path, owned: Path) -> Image:
    """A prepared image."""
    image = make_image(tmp_path / "image", [owned])
    image.list("/etc/app.conf")
    image.prepare()
    return image


@pytest.mark.root
@pytest.mark.rpm
def test_prepare_puts_the_shipped_steps_into_an_image(image: Image) -> None:
    directory = image.root / SHIPPED_STEPS[1:]
    shipped = {path.name: path.read_bytes() for path in PROJECT.glob("upgrade_steps/s*.py")}
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == shipped
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o644}
    assert list(steps_in(image.root)) == sorted(name.removesuffix(".py") for name in shipped)
    age(image.root)
    before = picture(image.root)
    assert not image.prepare().changed
    assert picture(image.root) == before


@pytest.mark.root
@pytest.mark.rpm
def test_prepare_brings_shipped_steps_up_to_date_and_leaves_those_of_a_derived_image(
    image: Image,
) -> None:
    root = image.root
    fingerprint = image.header().fingerprint
    put_step(root, "s0350_of_an_older_version.py")
    changed = put_step(root, "s0300_sssd_caches.py", step_text(summary="Older."))
    ours = put_step(root, "s0300_sssd_caches.py", step_text(summary="Ours."), own=True)
    put_step(root, "s5000_own.py", own=True)
    mask = root / OWN_STEPS[1:] / "s0310_kdcinfo.py"
    mask.symlink_to("/dev/null")
    (changed.parent / ".s0300_sssd_caches.py.new").write_text("half of i")
    result = image.prepare()
    assert result.changed
    assert result.fingerprint != fingerprint
    assert [text for text in result.warnings if "s0350_of_an_older_version.py" in text]
    found = steps_in(root)
    assert changed.read_bytes() == (PROJECT / "upgrade_steps" / changed.name).read_bytes()
    assert not (changed.parent / ".s0300_sssd_caches.py.new").exists()
    assert "s0350_of_an_older_version" not in found
    assert found["s0300_sssd_caches"].source == "/" + str(ours.relative_to(root))
    assert found["s0310_kdcinfo"].masked
    assert "s5000_own" in found
    assert not image.prepare().changed


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("own", [True, False], ids=["own", "shipped"])
def test_a_faulty_step_fails_the_build_of_an_image(image: Image, own: bool) -> None:  # noqa: FBT001
    if own:
        put_step(image.root, "s5000_own.py", step_text(when="never"), own=True)
    else:
        path = image.root / SHIPPED_STEPS[1:] / "s0310_kdcinfo.py"
        path.unlink()
        path.symlink_to("/dev/null")
    done = run_ipavolume("prepare", "--root", image.root, status=78)
    said = "s5000_own.py:8: WHEN: 'never'" if own else "s0310_kdcinfo.py: is a symbolic link"
    assert said in done.stderr


# -- only root's -------------------------------------------------------------------------

_FIND_INSIDE = """
import os, sys
from ipavolume.errors import IpaVolumeError
from ipavolume.image.tree import ImageTree
from ipavolume.steps.declaration import find_steps
from ipavolume.config.releases import validate_range
import ipavolume.steps.names
# What is imported late cannot be found any more inside.
validate_range(">1")
os.chroot(sys.argv[1])
os.chdir("/")
try:
    with ImageTree("/", {}) as tree:
        print(*(found.name for found in find_steps(tree)))
except IpaVolumeError as err:
    sys.exit(f"{err.exit_status} {err}")
"""


def find_inside(root: Path) -> subprocess.CompletedProcess[str]:
    """Find the steps of an image with its root as the root directory."""
    return subprocess.run(
        [sys.executable, "-c", _FIND_INSIDE, str(root)],
        capture_output=True,
        check=False,
        text=True,
        env=clean_environment(),
        timeout=60,
    )


@pytest.mark.root
@pytest.mark.parametrize(
    "path",
    ["", "usr", "usr/share/ipavolume", SHIPPED_STEPS[1:], f"{SHIPPED_STEPS[1:]}/s0300_drop.py"],
)
@pytest.mark.parametrize("how", ["writable", "owned"])
def test_in_a_container_steps_that_others_than_root_can_write_are_refused(
    tmp_path: Path, path: str, how: str
) -> None:
    root = tmp_path / "image"
    put_step(root, "s0300_drop.py")
    for place in (root, *root.rglob("*")):
        place.chmod(0o755)
    assert find_inside(root).stdout == "s0300_drop\n"
    if how == "writable":
        (root / path).chmod(0o775)
    else:
        os.chown(root / path, 250, 0)
    done = find_inside(root)
    said = "can be written by others" if how == "writable" else "belongs to user 250"
    assert done.stderr.startswith("78 ")
    assert f"/{path}: {said}" in done.stderr
    # A tree that somebody unpacked belongs to whoever did that, and nothing of it is run.
    assert list(steps_in(root)) == ["s0300_drop"]


# -- selecting ---------------------------------------------------------------------------


def declared(*, when: When = When.UPGRADE, applies_from: str = "") -> Declaration:
    """Return a declaration for the component ``app``."""
    return Declaration(
        name="s0300_drop",
        source=f"{SHIPPED_STEPS}/s0300_drop.py",
        digest="",
        summary="Drop.",
        component="app",
        applies_from=applies_from,
        when=(when,),
        phase=Phase.OFFLINE,
    )


@pytest.mark.parametrize(
    ("applies_from", "recorded", "known", "again", "asked", "why"),
    [
        ("", "4.9-1.fc40", True, False, True, "app 4.9-1.fc40, every version"),
        ("<4.12", "4.9-1.fc40", True, False, True, "app 4.9-1.fc40 is in <4.12"),
        ("<4.12", "7:4.9-1.fc40", True, False, True, "app 7:4.9-1.fc40 is in <4.12"),
        ("<4.12", "4.12-1.fc43", True, False, False, "app 4.12-1.fc43 is not in <4.12"),
        ("<4.12", "4.12.0", True, False, False, "app 4.12.0 is not in <4.12"),
        ("<4.12", "4.11~rc1-1", True, False, True, "app 4.11~rc1-1 is in <4.12"),
        ("<4.12", "git20200101-1", True, False, True, "app git20200101-1 is in <4.12"),
        ("<4.12", "4.12-1", True, True, True, "all is asked for again"),
        ("<4.12", None, True, False, False, "app is not on the volume"),
        ("<4.12", None, True, True, False, "app is not on the volume"),
        ("<4.12", None, False, False, True, "the version of app is not known"),
        ("", None, False, False, True, "the version of app is not known"),
    ],
)
def test_a_step_is_asked_by_the_version_recorded_on_the_volume(
    *, applies_from: str, recorded: str | None, known: bool, again: bool, asked: bool, why: str
) -> None:
    def of(name: str) -> str | None:
        assert name == "app"
        return recorded

    found = applies(
        declared(applies_from=applies_from),
        when=When.UPGRADE,
        recorded=of,
        known=known,
        again=again,
    )
    assert found[0] is asked
    assert why in found[1]


@pytest.mark.parametrize("when", When)
def test_a_step_is_asked_only_at_the_runs_that_it_is_for(when: When) -> None:
    for run in When:
        asked, why = applies(
            declared(when=when), when=run, recorded=lambda _: "1-1", known=True, again=True
        )
        assert asked is (run is when)
        assert asked or why.startswith("is for ")


# -- loading -----------------------------------------------------------------------------


def body(returned: str) -> str:
    """Return a ``plan`` that returns an expression."""
    return f"def plan(volume, template):\n    return {returned}\n"


def planned(tmp_path: Path, text: str) -> object:
    """Load a step with this text and let it plan."""
    scene = Scene(top=tmp_path / "scene")
    put_step(scene.image, "s0300_step.py", text)
    return scene.plan(loaded(scene.image, "s0300_step"))


_ACTIONS = "from ipavolume.steps import Command, MakeLink, Refuse, Remove, Warn, Write\n"


def test_a_loaded_step_returns_what_is_to_be_done(tmp_path: Path) -> None:
    text = step_text(
        imports=_ACTIONS,
        body="def plan(volume, template):\n"
        "    yield Write(path='/etc/a', content=b'a', reason='one')\n"
        "    yield MakeLink(path='/etc/b', target='a', reason='two')\n"
        "\n\ndef verify(volume):\n    return [Command(words=('true',), reason='three')]\n",
    )
    assert planned(tmp_path, text) == (
        Write(path="/etc/a", content=b"a", reason="one"),
        MakeLink(path="/etc/b", target="a", reason="two"),
    )
    step = loaded(tmp_path / "scene/image", "s0300_step")
    assert step.verify is not None
    with Scene(top=tmp_path / "scene").views() as (volume, _):
        assert step.verify(volume) == (Command(words=("true",), reason="three"),)


def test_a_step_may_have_dataclasses_and_functions_of_its_own(tmp_path: Path) -> None:
    text = step_text(
        imports="from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "import re\nfrom typing import ClassVar\n",
        body="PATTERN = re.compile('x')\n\n\n@dataclass\nclass Found:\n    name: str\n"
        "    other: ClassVar[int] = 1\n\n\ndef plan(volume, template):\n"
        "    assert Found('x').name == 'x' and PATTERN.match('x')\n    return []\n",
    )
    assert planned(tmp_path, text) == ()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "plan() returned NoneType, not a sequence"),
        ("'text'", "plan() returned str, not a sequence"),
        ("[1]", "int as action 1"),
        ("[Warn]", "type as action 1"),
        ("[Remove(path='etc/a', reason='r')]", "'etc/a' is not an absolute path"),
        ("[Remove(path=b'/etc/a', reason='r')]", "is not an absolute path"),
        ("[Remove(path='/etc/../a', reason='r')]", "not written plainly"),
        ("[Remove(path='/etc//a', reason='r')]", "not written plainly"),
        ("[Remove(path='/etc/a/', reason='r')]", "not written plainly"),
        ("[Remove(path='/', reason='r')]", "not written plainly"),
        ("[Remove(path='/etc/a\\0', reason='r')]", "is not an absolute path"),
        ("[Remove(path='/data/.ipavolume/index', reason='r')]", "ipavolume's own directory"),
        ("[Remove(path='/etc/a', reason=' ')]", "reason ' ' is not a text"),
        ("[Remove(path='/etc/a', reason='r', keep_copy=2)]", "keep_copy"),
        ("[Write(path='/etc/a', content='a', reason='r')]", "content is not bytes"),
        ("[Write(path='/etc/a', content=bytes((16 << 20) + 1), reason='r')]", "is larger than"),
        ("[Write(path='/etc/a', content=b'', reason='r', mode=0o4755)]", "mode 2541"),
        ("[Write(path='/etc/a', content=b'', reason='r', mode='x')]", "mode 'x'"),
        ("[Write(path='/etc/a', content=b'', reason='r', keep_copy=2)]", "keep_copy"),
        ("[MakeLink(path='/etc/a', target='', reason='r')]", "target '' is not a text"),
        ("[MakeLink(path='/etc/a', target='a\\0', reason='r')]", "is not a text"),
        ("[MakeLink(path='/etc/a', target='\\ud800', reason='r')]", "in no encoding"),
        ("[Remove(path='/etc/\\ud800', reason='r')]", "in no encoding"),
        ("[Command(words=('echo', '\\ud800'), reason='r')]", "not words of a command"),
        ("[Command(words=('true',), reason='r', timeout_s=10**12)]", "timeout_s 1000000000000"),
        ("[Command(words=(), reason='r')]", "are not a tuple of words"),
        ("[Command(words='true', reason='r')]", "s0300_step.py:13: plan() returned as action 1"),
        ("[Command(words='true', reason='r')]", "are not a tuple of words"),
        ("[Command(words=('true', 1), reason='r')]", "are not words of a command"),
        ("[Command(words=('', 'a'), reason='r')]", "are not words of a command"),
        ("[Command(words=('true',), reason='r', timeout_s=0)]", "timeout_s 0"),
        ("[Command(words=('true',), reason='r', may_fail=1)]", "may_fail"),
        ("[Command(words=('true',), reason='r', repeat='x')]", "repeat"),
        ("[Command(words=('true',), reason='')]", "reason '' is not a text"),
        ("[Warn(code='two words', text='t')]", "code 'two words'"),
        ("[Warn(code='a', text='')]", "text '' is not a text"),
        ("[Warn(code='a', text='t', hint=3)]", "hint 3 is not a text"),
        ("[Refuse(code='', text='t', hint='h')]", "code ''"),
        ("[Refuse(code='a', text='t', hint='')]", "hint '' is not a text"),
        ("iter(int, 1)", "returned more than 100000 actions"),
    ],
)
def test_what_a_step_returns_is_checked(tmp_path: Path, returned: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planned(tmp_path, step_text(imports=_ACTIONS, body=body(returned)))
    assert said in str(caught.value)
    assert f"{SHIPPED_STEPS}/s0300_step.py" in str(caught.value)
    assert caught.value.code == "broken-step"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (step_text(body=body("1 / 0")), 13, "ZeroDivisionError: division by zero"),
        (step_text(body=body("len(x for x in 5)")), 13, "TypeError"),
        (step_text(body=body("volume.read(5)")), 13, "AttributeError"),
        (step_text(body="def plan(v, t):\n    yield\n    raise SystemExit(0)\n"), 14, "SystemExit"),
        (step_text(imports="X = 1 / 0"), 5, "ZeroDivisionError"),
    ],
)
def test_an_exception_in_a_step_names_the_step_and_the_line(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planned(tmp_path, text)
    assert caught.value.exit_status == 78
    where = f"the upgrade step {SHIPPED_STEPS}/s0300_step.py:{line}"
    assert f"{where}: raised {said}" in str(caught.value)


def test_what_a_step_names_by_itself_is_defined(tmp_path: Path) -> None:
    text = step_text(
        imports="import json\nfrom ipavolume.steps import Remove\n",
        body="FOUND = {}\n\n\nclass Own(ValueError):\n    name = __qualname__\n\n\n"
        "def plan(volume, template):\n    global LATE\n    LATE = [json for json in ()]\n"
        "    given = {'path': '/a', 'reason': 'r'}\n"
        "    try:\n        return [Remove(**given) for FOUND in LATE]\n"
        "    except Own as err:\n        raise TypeError(f'{err} {__file__}') from err\n",
    )
    assert planned(tmp_path, text) == ()


@pytest.mark.parametrize("where", ["top", "plan", "iteration"])
def test_a_step_that_does_not_end_is_ended_and_named(tmp_path: Path, where: str) -> None:
    """F32: what it handles is no way out."""
    endless = "    while True:\n        try:\n            pass\n"
    endless += "        except Exception:\n            pass\n"
    bodies = {
        "top": f"def loop():\n{endless}\n\nX = loop()\n{NOTHING}",
        "plan": f"def plan(volume, template):\n{endless}",
        "iteration": f"def plan(volume, template):\n    yield from ()\n{endless}",
    }
    put_step(tmp_path / "scene/image", "s0300_step.py", step_text(body=bodies[where]))
    scene = Scene(top=tmp_path / "scene")
    with ImageTree(str(scene.image), {}) as tree:
        (declaration,) = find_steps(tree)
        with pytest.raises(ConfigurationError) as caught:
            scene.plan(load_step(tree, declaration, limit_s=0.1))
    assert f"{SHIPPED_STEPS}/s0300_step.py:1" in str(caught.value)
    assert "took longer than 0.1 s and was ended here" in str(caught.value)


def test_a_verify_function_returns_commands_and_nothing_else(tmp_path: Path) -> None:
    text = step_text(
        imports=_ACTIONS,
        body=NOTHING + "\n\ndef verify(volume):\n    return [Warn(code='a', text='t')]\n",
    )
    put_step(tmp_path / "scene/image", "s0300_step.py", text)
    step = loaded(tmp_path / "scene/image", "s0300_step")
    with Scene(top=tmp_path / "scene").views() as (volume, _):
        assert step.verify is not None
        with pytest.raises(ConfigurationError, match=r"verify\(\) returned Warn as action 1"):
            step.verify(volume)


def test_what_is_against_going_back_is_said_and_nothing_is_done(tmp_path: Path) -> None:
    text = step_text(
        imports=_ACTIONS,
        body=NOTHING + "\n\ndef going_back(volume):\n    return [Warn(code='a', text='t'), "
        "Command(words=('true',), reason='r')]\n",
    )
    put_step(tmp_path / "scene/image", "s0300_step.py", text)
    step = loaded(tmp_path / "scene/image", "s0300_step")
    with Tree({}) as empty:
        assert step.going_back is not None
        with pytest.raises(
            ConfigurationError, match=r"going_back\(\) returned Command as action 2"
        ):
            step.going_back(RollbackVolumeView(empty, empty, (), None))


def test_only_the_text_that_was_declared_is_executed(tmp_path: Path) -> None:
    put_step(tmp_path, "s0300_step.py")
    with ImageTree(str(tmp_path), {}) as tree:
        (declaration,) = find_steps(tree)
        put_step(tmp_path, "s0300_step.py", step_text(summary="Another."))
        with pytest.raises(ConfigurationError, match="is not the text"):
            load_step(tree, declaration)
        (tmp_path / SHIPPED_STEPS[1:] / "s0300_step.py").unlink()
        with pytest.raises(ConfigurationError, match="is not a regular file"):
            load_step(tree, declaration)
