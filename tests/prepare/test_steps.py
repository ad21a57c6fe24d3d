"""What ``prepare`` finds out about the upgrade steps of an image (F30, F31, F32)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import inside
from support.command import Result, run_ipavolume
from support.images import Image, Packaged, build_rpm, make_image
from support.steps import put_step, step_text

from ipavolume.image.tree import ImageTree
from ipavolume.steps import known
from ipavolume.steps.declaration import find_steps

pytestmark = [pytest.mark.root, pytest.mark.rpm]

_ACTIONS = "from ipavolume.steps import Command, MakeLink, Refuse, Remove, Warn, Write\n"


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a file and a directory with something in it."""
    files = [
        Packaged(path="/etc/app/app.conf", content="x"),
        Packaged(path="/etc/app/conf.d/one", content="x"),
    ]
    return build_rpm(tmp_path_factory.mktemp("rpm"), "app", files)


@pytest.fixture
def image(tmp_path: Path, rpm: Path) -> Image:
    """An image that has been prepared once, so that its packages are known."""
    image = make_image(tmp_path / "image", [rpm])
    image.list("/etc/app/")
    image.prepare()
    return image


def _own(image: Image, text: str) -> None:
    put_step(image.root, "s5000_own.py", text, own=True)


def _prepared_inside(image: Image, tmp_path: Path, *, status: int) -> Result:
    for name in ("volume", "layer"):
        (tmp_path / name).mkdir()
    words = [*inside.IPAVOLUME, "prepare"]
    done = inside.run(image.root, tmp_path / "volume", words, layer=tmp_path / "layer")
    assert done.returncode == status, done.stderr
    return done


def test_prepare_records_what_the_steps_declare(image: Image) -> None:
    _own(image, step_text())
    run_ipavolume("prepare", "--root", image.root)
    with ImageTree(str(image.root), {}) as tree:
        recorded = known.read(tree, ())
        steps = find_steps(tree)
        assert "s5000_own" in {step.name for step in steps}
        assert recorded == {step.source: step for step in steps}
        assert known.read(tree, ("/usr/share",)) == {}


@pytest.mark.parametrize("component", ["app", "?app", "?other"])
def test_a_step_is_for_a_package_that_the_image_has_or_says_that_it_need_not(
    image: Image, component: str
) -> None:
    _own(image, step_text(component=component))
    run_ipavolume("prepare", "--root", image.root)


def test_a_step_for_a_package_that_the_image_does_not_have_is_refused(image: Image) -> None:
    """F30: it would never be asked, and the volume would be *current* without it."""
    _own(image, step_text(component="ap"))
    done = run_ipavolume("prepare", "--root", image.root, status=78)
    assert "s5000_own.py: COMPONENT: no package of the image is called 'ap'" in done.stderr
    assert 'COMPONENT = "?name"' in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return volume.read('/etc/app/app.conf').decode()", "a volume with nothing on it"),
        ("return 1 / len(volume.list('/etc/app'))", "s5000_own.py:14: raised ZeroDivisionError"),
        ("return None", "plan() returned NoneType"),
        (
            "return [Write(path='/opt/x', content=b'', reason='r')]",
            "'/opt/x', which no list of the image keeps on a volume (asked about a volume just",
        ),
        (
            "return [Write(path='/etc/app/none/x', content=b'', reason='r')]",
            "the directory '/data/etc/app/none' is not there",
        ),
        (
            "return [Write(path='/etc/app/app.conf/x', content=b'', reason='r')]",
            "'/data/etc/app/app.conf' is a file",
        ),
        (
            "return [MakeLink(path='/etc/app/conf.d', target='x', reason='r')]",
            "'/etc/app/conf.d', which is a directory",
        ),
        (
            "return [Remove(path='/etc/app/conf.d', reason='r')]",
            "the directory '/etc/app/conf.d', in which there is 'one'",
        ),
        (
            "return [Command(words=('no-such-command',), reason='r')]",
            "'no-such-command', which the image does not have",
        ),
        (
            "return [Command(words=('/no/such/command',), reason='r')]",
            "'/no/such/command', which the image does not have",
        ),
    ],
)
def test_what_a_step_would_end_in_at_an_upgrade_fails_the_build(
    image: Image, tmp_path: Path, body: str, said: str
) -> None:
    """F31, F32: each step is asked about an empty volume and about one just populated."""
    text = f"def plan(volume, template):\n    {body}\n"
    _own(image, step_text(imports=_ACTIONS, body=text))
    done = _prepared_inside(image, tmp_path, status=78)
    assert said in done.stderr
    assert "[broken-step]" in done.stderr


def test_what_a_step_can_do_passes(image: Image, tmp_path: Path) -> None:
    """What comes behind a command is not judged: nobody knows what that leaves."""
    body = """
def plan(volume, template):
    yield Refuse(code="no", text="Never.", hint="None.")
    yield Remove(path="/etc/app/conf.d/one", reason="r")
    yield Remove(path="/etc/app/conf.d", reason="r")
    yield Write(path="/etc/app/script", content=b"", reason="r", mode=0o755)
    yield Command(words=["/etc/app/script"], reason="r")
    yield Write(path="/etc/app/made/by/it", content=b"", reason="r")
"""
    _own(image, step_text(imports=_ACTIONS, body=body))
    _prepared_inside(image, tmp_path, status=0)


def test_on_a_host_no_step_is_asked(image: Image) -> None:
    """What an image contains is not executed outside of it."""
    _own(image, step_text(body="def plan(volume, template):\n    return 1 / 0\n"))
    run_ipavolume("prepare", "--root", image.root)
