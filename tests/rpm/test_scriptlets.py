"""Scriptlets: written when an image is built, chosen for an upgrade, and their command lines."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support import inside
from support.images import Image, make_image, picture
from support.requirements import need_tool

from ipavolume.config.model import ScriptletsConfig, Substitution
from ipavolume.config.reading import parse_config
from ipavolume.errors import (
    CannotCreateError,
    ConfigurationError,
    IpaVolumeError,
    ManifestError,
)
from ipavolume.image.scriptlets import read_body, read_catalogue
from ipavolume.image.tree import ImageTree
from ipavolume.model.packages import Condition, Package, Provide
from ipavolume.model.scriptlets import GROUPS
from ipavolume.rpm import running, transaction
from ipavolume.rpm.catalogue import dump, is_name, load, safe_names, substance
from ipavolume.rpm.scriptlets import Call, Catalogue, Scriptlet
from ipavolume.rpm.versions import Sense

SCRIPTLETS = "usr/share/ipavolume/scriptlets"
ALL = """
%pretrans -p <lua>
print(1)
%pre
echo pre
%post
echo post < & > 100%% /etc/named.conf
%preun -p /sbin/ldconfig
%postun
echo postun
%posttrans -p "/bin/sh -e"
echo posttrans
%verifyscript
exit 0
%triggerin -- other, third < 2
echo first
%triggerin -p <lua> -- fourth
print(2)
%triggerun -p /bin/sh -- other
%filetriggerin -- /usr/lib
cat
%transfiletriggerpostun -- /usr/share
echo file
"""


def build(directory: Path, name: str, text: str, *, version: str = "1", more: str = "") -> Path:
    """Build a package without files and with scriptlets."""
    top = directory / f"{name}-{version}"
    top.mkdir(parents=True)
    spec = top / "package.spec"
    spec.write_text(
        f"Name: {name}\nVersion: {version}\nRelease: 1\nSummary: x\nLicense: x\n{more}"
        f"BuildArch: noarch\n%description\nx\n%files\n{text}\n"
    )
    command = [need_tool("rpmbuild"), "-bb", "--quiet", "--define", f"_topdir {top}", str(spec)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (rpm,) = (top / "RPMS").rglob("*.rpm")
    return rpm


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image with a shell and with rpm, as far as prepare looks at them."""
    image = make_image(tmp_path / "image")
    image.list("/etc/app.conf")
    for name in ("sh", "rpm", "rpmlua"):
        image.write(f"/usr/bin/{name}", "", mode=0o755)
    (image.root / "bin").symlink_to("usr/bin")
    return image


def catalogue_of(image: Image) -> Catalogue:
    """Return the catalogue of an image as a container reads it."""
    with ImageTree(str(image.root), {}) as tree:
        return read_catalogue(tree)


def bodies_of(image: Image) -> dict[str, bytes]:
    """Return the texts of an image as a container reads them."""
    with ImageTree(str(image.root), {}) as tree:
        return {one.name: read_body(tree, one) for one in read_catalogue(tree).scriptlets}


def configure(image: Image, text: str) -> None:
    """Write the configuration of an image."""
    image.write("/etc/ipavolume.toml", f"[scriptlets]\n{text}\n")


# -- written when an image is built ------------------------------------------------------


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("given", [False, True])
def test_every_kind_is_a_file_that_a_person_finds(
    image: Image, tmp_path: Path, *, given: bool
) -> None:
    rpm = build(tmp_path, "app", ALL)
    if given:
        image.prepare(rpms=[rpm])
    else:
        image.install(rpm)
        image.prepare()
    files = {path.name: path.read_bytes() for path in (image.root / SCRIPTLETS).iterdir()}
    del files["index.jsonl"]
    assert files == {
        "app-pretrans": b"print(1)",
        "app-pre": b"echo pre",
        "app-post": b"echo post < & > 100% /etc/named.conf",
        "app-postun": b"echo postun",
        "app-posttrans": b"echo posttrans",
        "app-verifyscript": b"exit 0",
        "app-triggerin-1": b"echo first",
        "app-triggerin-2": b"print(2)",
        "app-triggerun-1": b"",
        "app-filetriggerin-1": b"cat",
        "app-transfiletriggerpostun-1": b"echo file",
    }
    catalogue = catalogue_of(image)
    assert bodies_of(image) == {**files, "app-preun": b""}
    assert catalogue.lua == "rpmlua"
    assert catalogue.packages == (("app", "1-1", "noarch"),)
    found = {one.name: one for one in catalogue.scriptlets}
    assert found["app-posttrans"].interpreter == ("/bin/sh", "-e")
    assert found["app-preun"].digest == ""
    assert [one.number for one in catalogue.scriptlets if one.kind.startswith("trigger")] == [
        *(1, 2, 3),
    ]
    assert found["app-triggerin-1"].conditions == (
        Condition(name="other", place=1),
        Condition(name="third", sense=Sense.LESS, evr="2", place=3),
    )
    assert found["app-filetriggerin-1"].priority == 1_000_000


@pytest.mark.root
@pytest.mark.rpm
def test_prepared_again_nothing_changes_and_what_is_gone_goes(image: Image, tmp_path: Path) -> None:
    first = build(tmp_path, "app", "%post\necho one\n%triggerin -- x\ntrue")
    image.prepare(rpms=[first])
    fingerprint = image.header().fingerprint
    before = picture(image.root)
    assert not image.prepare(rpms=[first]).changed
    assert picture(image.root) == before
    stale = image.root / SCRIPTLETS / "stale"
    stale.mkdir()
    (stale / "file").write_text("x")
    (image.root / SCRIPTLETS / "app-post").chmod(0o755)
    assert image.prepare(rpms=[first]).changed
    assert picture(image.root, times=False) == {
        path: (*value[:-1], 0) for path, value in before.items()
    }
    again = build(tmp_path / "other", "app", "%post\necho two")
    image.prepare(rpms=[again])
    assert bodies_of(image) == {"app-post": b"echo two"}
    assert image.header().fingerprint != fingerprint
    assert {path.name for path in (image.root / SCRIPTLETS).iterdir()} == {
        "app-post",
        "index.jsonl",
    }


@pytest.mark.root
@pytest.mark.rpm
def test_packages_are_in_the_order_in_which_they_were_installed(
    image: Image, tmp_path: Path
) -> None:
    rpms = {
        name: build(tmp_path, name, "%post\ntrue", more=f"Requires: {needs}\n" if needs else "")
        for name, needs in (("a", "c"), ("b", ""), ("c", "b"))
    }
    image.install(*rpms.values())
    image.prepare()
    assert [name for name, _, _ in catalogue_of(image).packages] == ["b", "c", "a"]
    image.prepare(rpms=[rpms[name] for name in "cab"])
    assert [name for name, _, _ in catalogue_of(image).packages] == ["c", "a", "b"]


@pytest.mark.root
@pytest.mark.rpm
def test_what_is_configured_and_cannot_run_is_refused_at_once(image: Image, tmp_path: Path) -> None:
    rpm = build(
        tmp_path,
        "app",
        "%post -p /usr/bin/python9\nx\n%posttrans -p <lua>\nprint(1)\n%triggerin -e -- x\nx\n"
        "%pre -p /no/such/thing\nx",
        more="Provides: other-name = 3\n",
    )
    plain = build(tmp_path, "plain", "%post -p /no/such/thing\nx")
    for name in ("rpm", "rpmlua"):
        (image.root / "usr/bin" / name).chmod(0o644)
    image.write("/etc/app.conf")
    configure(image, 'packages = ["ap*", "missing", "?absent", "other-name", "gone*"]')
    before = picture(image.root)
    with pytest.raises(ConfigurationError) as caught:
        image.prepare(rpms=[rpm, plain])
    assert caught.value.exit_status == 78
    assert str(caught.value).split("; ") == [
        "[scriptlets] names 'missing', and no package of the image is called so or provides it",
        "[scriptlets] names 'gone*', and no package of the image is called so or provides it",
        "%post of app (app-post) is run by '/usr/bin/python9', which is no program in the image",
        "%posttrans of app (app-posttrans) is in lua, and nothing in the image runs that "
        "(rpmlua, rpm)",
        "%triggerin of app (app-triggerin-1) has macros to expand (-e, -q), and the image has "
        "no rpm",
    ]
    assert "/etc/ipavolume.toml" in caught.value.hint
    assert picture(image.root) == before
    image.write("/usr/bin/python9", mode=0o755)
    (image.root / "usr/bin/rpm").chmod(0o755)
    configure(image, 'packages = ["ap*", "?absent", "other-name"]')
    image.prepare(rpms=[rpm, plain])
    assert catalogue_of(image).lua == "rpm"


@pytest.mark.root
@pytest.mark.rpm
def test_a_replacement_that_finds_nothing_is_pointed_out(image: Image, tmp_path: Path) -> None:
    rpm = build(tmp_path, "app", ALL)
    configure(
        image,
        'packages = ["app", "?optional"]\nsubstitute = [\n'
        '{package = "app", find = "/etc/named.conf", replace = "/data/etc/named.conf"},\n'
        '{package = "app", find = "echo pre", replace = "x"},\n'
        '{package = "absent", find = "x", replace = "y"},\n'
        '{package = "optional", find = "x", replace = "y"},\n]',
    )
    image.prepare(rpms=[rpm])
    assert [text for text in image.warnings if "scriptlets" in text] == [
        "[scriptlets] substitute: no scriptlet of app that can run has 'echo pre'",
        "[scriptlets] substitute: no scriptlet of absent that can run has 'x'",
    ]


@pytest.mark.root
@pytest.mark.rpm
def test_a_replacement_of_the_profile_may_find_nothing(image: Image, tmp_path: Path) -> None:
    """It is for releases of many years: bind's %post edits named.conf in EL 8 alone."""
    rpm = build(tmp_path, "bind", "%post\ntrue\n")
    image.write("/etc/ipavolume.toml", 'profile = "freeipa"\n[scriptlets]\npackages = ["bind"]\n')
    image.prepare(rpms=[rpm])
    assert [text for text in image.warnings if "substitute" in text] == []


@pytest.mark.root
@pytest.mark.rpm
def test_interpreters_are_looked_for_in_the_image_alone(image: Image, tmp_path: Path) -> None:
    """A link that leads to a program of the host is one that leads nowhere."""
    host = tmp_path / "program"
    host.write_text("")
    host.chmod(0o755)
    image.write("/usr/bin/not-executable")
    (image.root / "usr/bin/link").symlink_to(host)
    (image.root / "usr/bin/loop").symlink_to("loop")
    (image.root / "usr/bin/directory").mkdir()
    (image.root / "usr/bin/good").symlink_to("/bin/sh")
    configure(image, 'packages = ["*"]')
    for name in ("not-executable", "link", "loop", "directory"):
        rpm = build(tmp_path, name, f"%post -p /usr/bin/{name}\ntrue")
        with pytest.raises(ConfigurationError, match=f"is run by '/usr/bin/{name}'"):
            image.prepare(rpms=[rpm])
    image.prepare(rpms=[build(tmp_path, "good", "%post -p /usr/bin/good\ntrue")])


@pytest.mark.root
@pytest.mark.rpm
def test_something_else_in_the_place_of_the_directory(image: Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    rpm = build(tmp_path, "app", ALL)
    place = image.root / SCRIPTLETS
    place.parent.mkdir(parents=True)
    place.write_text("a file")
    with pytest.raises(CannotCreateError, match="is not a directory"):
        image.prepare(rpms=[rpm])
    place.unlink()
    place.mkdir()
    (place / "app-post").symlink_to(outside / "file")
    (place / "app-pre").mkdir()
    (place / "link").symlink_to(outside)
    image.prepare(rpms=[rpm])
    assert bodies_of(image)["app-post"].startswith(b"echo post")
    assert (outside / "file").read_text() == "kept"


@pytest.mark.root
@pytest.mark.rpm
def test_a_text_that_was_altered_is_not_taken(image: Image, tmp_path: Path) -> None:
    image.prepare(rpms=[build(tmp_path, "app", ALL)])
    catalogue = catalogue_of(image)
    post = next(one for one in catalogue.scriptlets if one.name == "app-post")
    file = image.root / SCRIPTLETS / "app-post"
    with ImageTree(str(image.root), {}) as tree:
        file.write_bytes(file.read_bytes() + b"\nrm -rf /")
        with pytest.raises(ConfigurationError, match="is not what it was") as caught:
            read_body(tree, post)
        assert caught.value.exit_status == 78
        file.unlink()
        with pytest.raises(ConfigurationError, match="is missing"):
            read_body(tree, post)
        (image.root / SCRIPTLETS / "index.jsonl").unlink()
        with pytest.raises(ManifestError, match="no list of scriptlets"):
            read_catalogue(tree)


def test_names_are_safe_and_tell_everything_apart() -> None:
    owners = [
        ("certmonger", "1-1", "noarch", "post", 0),
        ("certmonger", "1-1", "noarch", "triggerin", 1),
        ("glibc", "2-1", "i686", "post", 0),
        ("glibc", "2-1", "x86_64", "post", 0),
        ("glibc.i686", "2-1", "noarch", "post", 0),
        ("kernel", "1:5-1", "noarch", "post", 0),
        ("kernel", "1:6-1", "noarch", "post", 0),
        ("../../etc/x", "1-1", "noarch", "post", 0),
        (".hidden", "1-1", "noarch", "post", 0),
        ("a=2Fb", "1-1", "noarch", "post", 0),
        ("a/b", "1-1", "noarch", "post", 0),
        ("caf\udce9 \n%{x}", "1-1", "noarch", "post", 0),
        ("x" * 1000, "1-1", "noarch", "transfiletriggerpostun", 1234),
        ("x" * 1001, "1-1", "noarch", "transfiletriggerpostun", 1234),
        ("perl(Foo::Bar)", "1-1", "noarch", "posttrans", 0),
    ]
    names = safe_names(owners)
    assert names[:7] == [
        "certmonger-post",
        "certmonger-triggerin-1",
        "glibc.i686-post",
        "glibc.x86_64-post",
        "glibc.i686~2-post",
        "kernel-1=3A5-1.noarch-post",
        "kernel-1=3A6-1.noarch-post",
    ]
    assert len(set(names)) == len(names)
    assert all(is_name(name) for name in names)
    assert all("/" not in name and len(name) <= 255 for name in names)


def sample() -> Catalogue:
    """Return a catalogue with everything in it."""
    return Catalogue(
        packages=(("a", "1:2-3", "noarch"), ("none", "1-1", "noarch"), ("b\udce9", "1-1", "x")),
        scriptlets=(
            _made("a-post", "post", order=0, evr="1:2-3"),
            _made(
                "b-triggerin-1",
                "triggerin",
                package="b\udce9",
                arch="x",
                order=2,
                number=1,
                interpreter=("/bin/sh", "\udcff"),
                conditions=(Condition(name="a", sense=2, evr="1", place=4),),
                expand=True,
                prefixes=("/opt/b", "/srv/\udce9"),
                provides=("b\udce9", "c"),
            ),
            _made(
                "b-preun",
                "preun",
                package="b\udce9",
                arch="x",
                order=2,
                digest="",
                provides=("b\udce9", "c"),
            ),
        ),
        lua="rpm",
    )


def _made(name: str, kind: str, **more: object) -> Scriptlet:
    values: dict[str, object] = {
        "package": "a",
        "evr": "1-1",
        "arch": "noarch",
        "interpreter": ("/bin/sh",),
        "digest": hashlib.sha256(name.encode()).hexdigest(),
    }
    return Scriptlet(name=name, kind=kind, **{**values, **more})  # type: ignore[arg-type]


def test_the_list_comes_back_as_it_was() -> None:
    catalogue = sample()
    assert load(dump(catalogue)) == catalogue
    assert load(dump(Catalogue())).scriptlets == ()


def test_the_order_of_installation_is_no_other_image() -> None:
    """Words 15: the fingerprint depended on whether packages came by the database or as files."""
    first = sample()
    last = len(first.packages) - 1
    other = replace(
        first,
        packages=first.packages[::-1],
        scriptlets=tuple(
            replace(one, order=last - one.order) for one in reversed(first.scriptlets)
        ),
    )
    assert dump(other) != dump(first)
    assert substance(other) == substance(first)
    for change in (
        {"digest": "0" * 64},
        {"evr": "2:2-3"},
        {"interpreter": ("/bin/false",)},
        {"prefixes": ("/opt/moved",)},
    ):
        changed = (replace(first.scriptlets[0], **change), *first.scriptlets[1:])
        assert substance(replace(first, scriptlets=changed)) != substance(first)


def is_refused(data: bytes) -> bool:
    """Tell whether a list is refused by a deliberate error."""
    try:
        load(data)
    except ManifestError:
        return True
    return False


def test_a_list_that_was_cut_or_changed_is_refused() -> None:
    data = dump(sample())
    dice = random.Random(1)
    cuts = [data[:length] for length in range(len(data) - 1)]
    changed = []
    for _ in range(3000):
        place = dice.randrange(len(data))
        changed.append(data[:place] + dice.randbytes(1) + data[place + 1 :])
    assert all(is_refused(mutant) for mutant in cuts)
    assert all(is_refused(mutant) for mutant in changed if mutant != data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../x"),
        ("name", ""),
        ("name", 1),
        ("kind", "rm"),
        ("kind", []),
        ("interpreter", []),
        ("interpreter", "sh"),
        ("interpreter", [""]),
        ("order", -1),
        ("order", 7),
        ("order", True),
        ("sha256", "x"),
        ("sha256", None),
        ("conditions", [["a", "b"]]),
        ("conditions", [[1, 2, "", 0]]),
        ("number", "1"),
    ],
)
def test_a_sealed_list_is_looked_at_all_the_same(key: str, value: object) -> None:
    """It may come from a hostile image, which can seal what it likes."""
    header, *lines = dump(sample()).splitlines(keepends=True)
    bad = json.loads(lines[-2])
    assert bad["name"] == "b-triggerin-1"
    bad[key] = value
    lines[-2] = json.dumps(bad).encode() + b"\n"
    body = b"".join(lines)
    head = json.loads(header)
    head["digest"] = hashlib.sha256(b"rpm\n" + body).hexdigest()
    with pytest.raises(ManifestError):
        load(json.dumps(head).encode() + b"\n" + body)


# -- chosen for an upgrade ---------------------------------------------------------------


def package(name: str, evr: str, *provides: str, arch: str = "noarch") -> Package:
    """Return a package."""
    epoch, _, rest = evr.rpartition(":")
    version, _, release = rest.partition("-")
    return Package(
        name=name,
        epoch=int(epoch or 0),
        version=version,
        release=release,
        arch=arch,
        provides=(Provide(name=name, evr=evr), *(Provide(name=one) for one in provides)),
    )


def image_of(packages: Sequence[Package], *made: Scriptlet) -> Catalogue:
    """Return the catalogue of an image with these packages in this order."""
    keys = [(one.name, one.evr, one.arch) for one in packages]
    return Catalogue(
        packages=tuple(keys),
        scriptlets=tuple(
            replace(
                one,
                order=next(n for n, key in enumerate(keys) if key[0] == one.package),
                evr=next(key[1] for key in keys if key[0] == one.package),
                provides=tuple(
                    provide.name
                    for other in packages
                    if other.name == one.package
                    for provide in other.provides
                ),
            )
            for one in made
        ),
    )


def trigger(owner: str, kind: str, *conditions: Condition, number: int = 1) -> Scriptlet:
    """Return a trigger."""
    return _made(
        f"{owner}-{kind}-{number}", kind, package=owner, number=number, conditions=conditions
    )


def chosen(
    catalogue: Catalogue,
    old: Sequence[Package],
    new: Sequence[Package],
    *,
    packages: tuple[str, ...] = ("*",),
    repeatable: tuple[str, ...] = (),
    complete: bool = True,
    again: bool = False,
) -> list[tuple[str, ...]]:
    """Return what is called: names and arguments; every listing has to agree."""
    config = ScriptletsConfig(packages=packages, repeatable=repeatable)
    calls = transaction.select(catalogue, config, old=old, complete=complete, new=new, again=again)
    if not again:
        listed = transaction.explain(catalogue, config, old=old, complete=complete, new=new)
        assert {one.scriptlet.name for one in listed if one.runs} == {
            call.scriptlet.name for call in calls
        }
        assert all(one.why for one in listed)
    return [(call.scriptlet.name, *call.arguments) for call in calls]


POST = _made("a-post", "post")
TRANS = _made("a-posttrans", "posttrans")


def test_a_package_that_changed_runs_and_one_that_did_not_does_not() -> None:
    new = [package("a", "2-1")]
    catalogue = image_of(new, POST, TRANS)
    both = [("a-post", "2"), ("a-posttrans", "2")]
    assert chosen(catalogue, [package("a", "1-1")], new) == both
    assert chosen(catalogue, [package("a", "1:9-1")], new) == both
    assert chosen(catalogue, new, new) == []
    assert chosen(catalogue, new, new, again=True) == both
    assert chosen(catalogue, new, new, again=True, packages=("b",)) == []
    assert chosen(catalogue, [package("a", "1-1")], new, packages=("b",)) == []
    # What was learned from files on a volume has no architecture.
    assert chosen(catalogue, [package("a", "2-1", arch="")], new) == []


def test_a_package_that_is_new_altogether_runs_nothing_of_its_own() -> None:
    new = [package("b", "1-1"), package("a", "2-1")]
    catalogue = image_of(
        new,
        POST,
        TRANS,
        trigger("a", "triggerin", Condition(name="b")),
        trigger("a", "triggerun", Condition(name="gone"), number=2),
        trigger("b", "triggerin", Condition(name="a")),
    )
    old = [package("b", "1-1"), package("gone", "1-1")]
    # What others have to do about it is done; so is what it has to do about what goes.
    assert chosen(catalogue, old, new) == [("b-triggerin-1", "1", "1"), ("a-triggerun-2", "1", "0")]


def test_an_unknown_version_runs_post_and_no_conditional_trigger() -> None:
    new = [package("a", "2-1")]
    own = Condition(name="a", sense=Sense.LESS, evr="1")
    catalogue = image_of(
        new,
        POST,
        trigger("a", "triggerun", own),
        trigger("a", "triggerpostun", Condition(name="a")),
    )
    assert chosen(catalogue, [], new, complete=False) == [
        ("a-post", "2"),
        ("a-triggerpostun-1", "2", "1"),
    ]
    assert chosen(catalogue, [], new, complete=False, repeatable=("a",)) == [
        ("a-post", "2"),
        ("a-triggerun-1", "2", "1"),
        ("a-triggerpostun-1", "2", "1"),
    ]
    assert chosen(catalogue, [], new) == []
    config = ScriptletsConfig(packages=("a",))
    (_, why, _) = transaction.explain(catalogue, config, old=[], complete=False, new=new)
    assert why.why == "the version of a on the volume is unknown, and it is not repeatable"


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        pytest.param(
            package("old-name", "1-1"), package("a", "2-1", "old-name"), ("*",), id="says so"
        ),
        pytest.param(
            package("idm-pki", "1-1", "pki"),
            package("a", "2-1", "pki"),
            ("pki",),
            id="both provide",
        ),
        pytest.param(package("older", "1-1", "a"), package("a", "2-1"), ("a",), id="said so"),
    ],
)
def test_a_renamed_package_is_upgraded(old: Package, new: Package, names: tuple[str, ...]) -> None:
    catalogue = image_of(
        [new],
        POST,
        TRANS,
        trigger("a", "triggerun", Condition(name=old.name, sense=Sense.LESS, evr="2")),
    )
    assert chosen(catalogue, [old], [new], packages=names) == [
        ("a-post", "2"),
        ("a-triggerun-1", "2", "0"),
        ("a-posttrans", "2"),
    ]


def test_a_package_that_is_there_besides_is_no_predecessor() -> None:
    new = [package("other", "1-1", "pki"), package("a", "2-1", "pki")]
    assert chosen(image_of(new, POST), [package("other", "1-1", "pki")], new) == []


def test_all_installed_versions_count() -> None:
    """As of kernels, and of a library for two architectures."""
    new = [package("a", "1-1"), package("a", "2-1")]
    catalogue = Catalogue(
        packages=tuple((one.name, one.evr, one.arch) for one in new),
        scriptlets=(replace(POST, evr="2-1", order=1), replace(TRANS, evr="2-1", order=1)),
    )
    assert chosen(catalogue, [package("a", "1-1")], new) == [("a-post", "2"), ("a-posttrans", "2")]
    new = [package("a", "2-1", arch=arch) for arch in ("i686", "x86_64")]
    old = [package("a", "1-1", arch=arch) for arch in ("i686", "x86_64")]
    catalogue = Catalogue(
        packages=tuple((one.name, one.evr, one.arch) for one in new),
        scriptlets=tuple(
            replace(POST, name=f"a.{one.arch}-post", evr="2-1", arch=one.arch, order=n)
            for n, one in enumerate(new)
        ),
    )
    assert chosen(catalogue, old, new) == [("a.i686-post", "3"), ("a.x86_64-post", "4")]


@pytest.mark.parametrize("kind", GROUPS)
def test_every_kind_that_the_configuration_can_ask_for_is_called_at_an_upgrade(kind: str) -> None:
    """A kind that is added there and to nothing else is found here."""
    new = [package("a", "2-1"), package("b", "1-1")]
    made = (
        trigger("b", kind, Condition(name="a"))
        if kind.startswith("trigger")
        else _made(f"a-{kind}", kind)
    )
    called = chosen(image_of(new, made), [package("a", "1-1"), package("b", "1-1")], new)
    assert [name for name, *_ in called] == [made.name]


def test_kinds_that_are_not_wanted_do_not_run() -> None:
    new = [package("a", "2-1")]
    catalogue = image_of(new, POST, TRANS, trigger("a", "triggerun", Condition(name="a")))
    calls = transaction.select(
        catalogue,
        ScriptletsConfig(packages=("a",), kinds=("posttrans",)),
        old=[package("a", "1-1")],
        complete=True,
        new=new,
    )
    assert [call.scriptlet.kind for call in calls] == ["posttrans"]


def test_why_something_does_not_run() -> None:
    new = [package("a", "2-1"), package("b", "1-1"), package("c", "1-1")]
    less = Condition(name="a", sense=Sense.LESS | Sense.EQUAL, evr="0.5")
    catalogue = image_of(
        new,
        *(_made(f"a-{kind}", kind) for kind in ("pre", "preun", "postun", "verifyscript")),
        _made("a-post", "post", interpreter=("/sbin/ldconfig",), digest=""),
        _made("a-filetriggerin-1", "filetriggerin", number=1, conditions=(Condition(name="/x"),)),
        _made("a-trigger-1", "trigger", number=2),
        _made("b-post", "post", package="b"),
        _made("c-post", "post", package="c"),
        trigger("b", "triggerun", less),
        trigger("b", "triggerin", Condition(name="c"), number=2),
    )
    config = ScriptletsConfig(packages=("a", "b"))
    old = [package("a", "1-1"), package("b", "1-1"), package("c", "1-1")]
    listed = transaction.explain(catalogue, config, old=old, complete=True, new=new)
    assert not any(one.runs for one in listed)
    assert {one.scriptlet.name: one.why for one in listed} == {
        "a-pre": "it comes before the files, which the image has already",
        "a-preun": "it is for when this package is replaced or erased",
        "a-postun": "it is for when this package is replaced or erased",
        "a-verifyscript": "it is for rpm --verify",
        "a-post": "ldconfig acts on the image, and did when it was built",
        "a-filetriggerin-1": "file triggers act on the image's files, and did when it was built",
        "a-trigger-1": "rpmbuild dropped its condition, so not even rpm ever runs it",
        "b-post": "b is 1-1 on the volume, too",
        "c-post": "[scriptlets] does not name its package",
        "b-triggerun-1": "no condition of it holds (a <= 0.5)",
        "b-triggerin-2": "nothing that it waits for changes (c)",
    }


def test_a_reason_tells_both_versions() -> None:
    new = [package("a", "2-1")]
    less = Condition(name="a", sense=Sense.LESS, evr="1.5")
    calls = transaction.select(
        image_of(new, POST, trigger("a", "triggerun", less)),
        ScriptletsConfig(packages=("a",)),
        old=[package("a", "1-1")],
        complete=True,
        new=new,
    )
    assert [call.reason for call in calls] == ["a: 1-1 -> 2-1", "a < 1.5: it was 1-1"]


# -- command lines -----------------------------------------------------------------------


def test_replacements_are_shown_as_a_diff() -> None:
    config = ScriptletsConfig(
        packages=("a",),
        substitute=(
            Substitution(package="a", find="/etc/named.conf", replace="/data/etc/named.conf"),
            Substitution(package="b", find="sed", replace="no"),
        ),
    )
    body = b"sed -i s/a/b/ /etc/named.conf\necho \xff\n"
    assert running.substituted(body, POST, config) == (
        b"sed -i s/a/b/ /data/etc/named.conf\necho \xff\n"
    )
    assert running.difference(body, POST, config)[2:] == [
        "@@ -1,2 +1,2 @@",
        "-sed -i s/a/b/ /etc/named.conf",
        "+sed -i s/a/b/ /data/etc/named.conf",
        " echo \udcff",
    ]
    assert running.difference(b"echo", POST, config) == []


@pytest.mark.parametrize(
    ("name", "other"), [("ipa-client", "freeipa-client"), ("freeipa-client", "ipa-client")]
)
def test_freeipas_client_edits_krb5_conf_on_the_volume(name: str, other: str) -> None:
    """``sed -i`` and ``mv`` would put a file, gone with the container, in the link's place."""
    config = parse_config(b'profile = "freeipa"\n').scriptlets
    assert config is not None
    post = replace(POST, package=name, provides=(name, other))
    body = b"sed -i /^includedir/d /etc/krb5.conf\nmv -Z /etc/krb5.conf.new /etc/krb5.conf\n"
    assert running.substituted(body, post, config) == (
        b"sed -i /^includedir/d /data/etc/krb5.conf\n"
        b"mv -Z /data/etc/krb5.conf.new /data/etc/krb5.conf\n"
    )


def test_bind_edits_named_conf_on_the_volume() -> None:
    """That of EL 8 takes a key out of it that FreeIPA before 4.8.7 wrote."""
    config = parse_config(b'profile = "freeipa"\n').scriptlets
    assert config is not None
    post = replace(POST, package="bind", provides=("bind", "bind-config"))
    body = b"sed s/a/b/ -i.rpmbackup /etc/named.conf\n"
    changed = b"sed s/a/b/ -i.rpmbackup /data/etc/named.conf\n"
    assert running.substituted(body, post, config) == changed


@pytest.mark.parametrize(
    ("name", "provides", "line"),
    [
        ("sssd-common", (), b"/usr/bin/chown -f -R root:sssd @/etc/sssd || true\n"),
        ("sssd-common", (), b"/usr/bin/chown -f -R root:root @/etc/sssd || true\n"),
        (
            "dogtag-pki-server",
            ("pki-server",),
            b"find @/var/log/pki -maxdepth 1 -type f -exec chmod o-rwx {} \\;\n",
        ),
    ],
)
def test_what_goes_through_a_directory_of_freeipa_goes_through_it_on_the_volume(
    name: str, provides: tuple[str, ...], line: bytes
) -> None:
    """Neither goes through a link: the second takes other people's access to logs away."""
    config = parse_config(b'profile = "freeipa"\n').scriptlets
    assert config is not None
    post = replace(POST, package=name, provides=(name, *provides))
    body = running.substituted(line.replace(b"@", b""), post, config)
    assert body == line.replace(b"@", b"/data")


LUA = """
assert(#arg == 3 and arg[1] == "<lua>" and arg[2] == 2 and arg[3] == 1, arg[2])
assert(opt ~= nil and rpm.vercmp("1", "2") < 0 and posix.getcwd() == "/")
print("it ran")
"""


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("runner", ["rpmlua", "rpm"])
def test_lua_runs_as_in_rpm(tmp_path: Path, runner: str) -> None:
    image = make_image(tmp_path / "image")
    volume = tmp_path / "volume"
    volume.mkdir()
    file = '/data/odd %{nil} "name\\}\u00e9'
    (volume / file.rpartition("/")[2]).write_text(LUA)
    scriptlet = replace(POST, interpreter=("<lua>",))
    call = Call(scriptlet=scriptlet, arguments=("2", "1"), reason="")
    words = running.argv(call, Catalogue(lua=runner), file)
    assert words[0] == runner
    done = inside.run(image.root, volume, words)
    assert (done.returncode, done.stdout.strip()) == (0, "it ran"), done.stderr
    (volume / file.rpartition("/")[2]).write_text("error('boom')")
    done = inside.run(image.root, volume, words)
    assert done.returncode != 0
    assert "boom" in done.stderr


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize(
    ("flags", "text", "written"),
    [
        pytest.param("-e", "%{_sysconfdir} 100%% %%{NAME}", "/etc 100% %{NAME}", id="macros"),
        pytest.param("-e", "%{warn:look}%{_sysconfdir}", "/etc", id="what rpm says besides"),
        pytest.param("-q", "%{NAME} 100%% [%{PROVIDES} ]", "app 100% app ", id="tags"),
        pytest.param("-e -q", "%{_sysconfdir} %%{VERSION}", "/etc 7", id="both"),
    ],
)
def test_macros_and_tags_are_expanded_by_rpm_itself(
    tmp_path: Path, flags: str, text: str, written: str
) -> None:
    """As it does in a transaction, where the scriptlet writes down what its text became."""
    text = f"cat > /data/out <<'END'\n{text} $HOME\nEND"
    rpm = build(tmp_path, "app", f"%post {flags}\n" + text.replace("%", "%%"), version="7")
    image = make_image(tmp_path / "image", [rpm])
    image.list("/etc/app.conf")
    # Debian's rpm has its database elsewhere.
    image.write("/root/.rpmmacros", "%_dbpath /var/lib/rpm\n")
    image.prepare()
    (scriptlet,) = catalogue_of(image).scriptlets
    (body,) = bodies_of(image).values()
    assert body == text.encode()
    (command,) = running.expansions(Call(scriptlet=scriptlet, arguments=(), reason=""), body)
    volume = tmp_path / "volume"
    volume.mkdir()
    done = inside.run(image.root, volume, command, env={"HOME": "/root"})
    # The text is all that the command says, on whichever of its two ways.
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(
        ["sh", "-e"],
        input=done.stdout.replace("/data/out", "out"),
        text=True,
        check=True,
        cwd=volume,
        timeout=60,
    )
    (volume / "out").rename(volume / "ours")
    (volume / "app.rpm").write_bytes(rpm.read_bytes())
    (image.root / "var/tmp").mkdir(parents=True, exist_ok=True)
    script = "mkdir /tmp/db; rpm --dbpath /tmp/db -i --nodeps /data/app.rpm"
    done = inside.run(image.root, volume, ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    assert (volume / "out").read_text() == f"{written} $HOME\n"
    assert (volume / "ours").read_text() == (volume / "out").read_text()


@pytest.mark.rpm
@pytest.mark.parametrize(("expand", "queryformat"), [(True, False), (True, True), (False, True)])
def test_why_rpm_cannot_expand_a_text_is_told(*, expand: bool, queryformat: bool) -> None:
    made = _made("app-post", "post", package="none", expand=expand, queryformat=queryformat)
    call = Call(scriptlet=made, arguments=(), reason="")
    (command,) = running.expansions(call, b"%{warn:look}" + b"%{error:boom}" * expand)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert ("boom" if expand else "none-1-1.noarch is not installed") in done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.rpm
def test_in_the_image_itself_lua_is_tried(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image")
    image.list("/etc/app.conf")
    image.write("/root/app.rpm", build(tmp_path, "app", ALL).read_bytes())
    command = [*inside.IPAVOLUME, "prepare", "--rpm", "/root/app.rpm"]
    shown = "head -c 40 /usr/share/ipavolume/scriptlets/index.jsonl"
    volume = tmp_path / "volume"
    volume.mkdir()

    def lua(*broken: str) -> str:
        for name in broken:
            image.write(f"/usr/bin/{name}", "#!/bin/sh\nexit 1\n", mode=0o755)
        # The place of the volume is mounted in a container that runs, not in one that is built.
        script = f"{' '.join(command)} >&2; {shown}"
        done = inside.run(image.root, {}, ["sh", "-c", script])
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert '"lua":"rpmlua"' in lua()
    assert '"lua":"rpm"' in lua("rpmlua")
    assert '"lua":""' in lua("rpmlua", "rpm")


def test_errors_have_a_hint() -> None:
    with pytest.raises(IpaVolumeError) as caught:
        load(b"x")
    assert "prepare" in caught.value.hint
