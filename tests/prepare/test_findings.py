"""What a build finds: codes, strict builds, and lines of path lists that were not meant."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.command import result_of, run_ipavolume
from support.images import Image, Packaged, build_rpm, make_image, picture

from ipavolume.errors import ConfigurationError, UsageError
from ipavolume.prepare.findings import ERRORS, MEANINGS, NOTES, Code, Findings, UnfitImageError

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_rpm(
        tmp_path_factory.mktemp("package"),
        "app",
        [
            Packaged(path="/etc/app", directory=True),
            Packaged(path="/etc/app/app.conf", words="%config", content="x\n"),
            Packaged(path="/var/log/app.log", words="%ghost", content="x\n"),
            Packaged(path="/var/lib/app", words="%ghost", directory=True),
            Packaged(path="/var/cache/app/index", words="%ghost", content="x\n"),
        ],
    )


@pytest.fixture
def image(tmp_path: Path, package: Path) -> Image:
    return make_image(tmp_path / "root", [package])


def codes(image: Image) -> list[tuple[str, str]]:
    """Prepare *image*; return code and path, or place, of what was found and stops some build."""
    found = image.prepare().findings
    return [(one.code, one.path or one.place) for one in found if one.code not in NOTES]


def test_every_code_is_a_word_with_a_text_of_its_own() -> None:
    assert set(MEANINGS) == set(Code)
    assert len(set(MEANINGS.values())) == len(MEANINGS)
    assert ERRORS.isdisjoint(NOTES)
    for code, text in MEANINGS.items():
        assert code.replace("-", "").isalpha()
        assert text.endswith(".")


def test_what_packages_and_the_image_know_is_meant(image: Image) -> None:
    """Words 13: ghosts are fine, and so are directories of which a package has something."""
    image.write("/etc/known")
    image.list("/etc/app/", "/var/lib/app/", "/var/cache/app/", "/etc/known", "/etc/app/app.conf")
    assert codes(image) == []
    assert codes(image) == []


def test_lines_that_were_not_meant_are_named_with_the_likely_ones(image: Image) -> None:
    """Words 13."""
    image.write("/srv/wiki/pages/x")
    image.write("/etc/hosts.conf")
    image.list(
        "# the lists",
        "/etc/ap/",
        "/srv/wiki/pages",
        "/etc/passwd/",
        "/etc/hostz.conf",
        "/srv/unheard/of/",
        "/etc/group",
        "/etc//group",
        "/run/app/",
    )
    found = image.prepare().findings
    assert [(one.code, one.path, one.place) for one in found] == [
        ("listed-twice", "/etc/group", "/etc/volume-data-list:8"),
        ("listed-as-file", "/srv/wiki/pages", "/etc/volume-data-list:3"),
        ("listed-accounts", "/etc/passwd", "/etc/volume-data-list:4"),
        ("listed-as-directory", "/etc/passwd", "/etc/volume-data-list:4"),
        ("listed-accounts", "/etc/group", "/etc/volume-data-list:7"),
        ("runtime-listed", "/run/app", "/etc/volume-data-list:9"),
        ("absent-directory", "", ""),
        ("absent-file", "", ""),
        ("single-file", "", ""),
    ]
    absent = found[6].message
    assert "'/etc/ap' (is '/etc/app' meant?)" in absent
    assert "'/srv/unheard/of'" in absent
    assert "'/etc/hostz.conf' (is '/etc/hosts.conf' meant?)" in found[7].message
    # F22: what a program may replace; what is in a listed directory it may.
    assert "not listed: '/etc/group', '/etc/passwd'. " in found[8].message
    # Once more, as in a derived image: its link leads to nothing, and is what was meant.
    (again,) = [one.message for one in image.prepare().findings if one.code == "absent-file"]
    assert "'/etc/hostz.conf'. " in again


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("/etc/passwd", "listed-accounts"),
        ("/etc/group", "listed-accounts"),
        ("/etc/hosts", "engine-listed"),
        ("/etc/resolv.conf", "engine-listed"),
    ],
)
def test_what_is_the_image_s_or_the_engine_s_is_named_where_it_would_come_on_the_volume(
    image: Image, line: str, code: str
) -> None:
    image.list(line)
    assert (code, line) in codes(image)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("/etc/app/*.conf", "list-glob"),
        ("/etc/app/app.con[fg]", "list-glob"),
        ("/etc/app/ # the configuration", "list-comment"),
        ("/usr/bin/", "programs-listed"),
        ("/usr/lib64", "programs-listed"),
        ("/usr/local/", "programs-listed"),
    ],
)
def test_a_line_that_cannot_work_is_refused_with_its_number(
    image: Image, line: str, code: str
) -> None:
    """Words 13: nothing was written."""
    image.list("/etc/app/", line)
    before = picture(image.root)
    with pytest.raises(ConfigurationError) as caught:
        image.prepare()
    assert (caught.value.code, caught.value.exit_status) == (code, 78)
    assert "/etc/volume-data-list:2: " in str(caught.value)
    assert caught.value.hint
    assert picture(image.root) == before


def test_a_name_with_a_star_or_a_number_sign_that_the_image_has_is_a_name(image: Image) -> None:
    image.write("/etc/app/a*b")
    image.write("/srv/c # d")
    image.list("/etc/app/a*b", "/srv/c # d")
    assert codes(image) == []
    assert image.readlink("/etc/app/a*b") == "/data/etc/app/a*b"


def test_a_strict_build_refuses_what_was_not_meant_and_what_is_accepted_passes(
    image: Image,
) -> None:
    image.list("/etc/app", "/etc/missing.conf")
    before = picture(image.root)
    ended = run_ipavolume("prepare", "--root", str(image.root), "--strict", "--json", status=78)
    lines = ended.stderr.splitlines()
    (first,) = [line for line in lines if "[listed-as-file]" in line]
    assert first.startswith("ipavolume: error: /etc/volume-data-list:1: '/etc/app' is a directory")
    assert any("2 findings stop this build: listed-as-file, absent-file" in one for one in lines)
    assert any("--accept CODE" in line for line in lines)
    assert [one["code"] for one in result_of(ended.stdout)["findings"]] == [
        "listed-as-file",
        "absent-file",
    ]
    assert picture(image.root) == before
    ended = run_ipavolume(
        "prepare", "--root", str(image.root), "--strict", "--accept=absent-file", status=78
    )
    assert ended.stderr.count("listed-as-file") == 1
    ended = run_ipavolume(
        "prepare",
        "--root",
        str(image.root),
        "--json",
        "--strict",
        "--accept=absent-file",
        "--accept=listed-as-file",
    )
    assert ended.stderr.count("ipavolume: warning:") == 2
    assert [
        (one["code"], one["severity"], one["place"]) for one in result_of(ended.stdout)["findings"]
    ] == [
        ("listed-as-file", "warning", "/etc/volume-data-list:1"),
        ("absent-file", "warning", ""),
    ]


def test_a_strict_build_is_refused_before_anything_is_moved(image: Image, tmp_path: Path) -> None:
    """Also for what scriptlets and earlier upgrades of packages do beside a listed file."""
    scripts = build_rpm(
        tmp_path,
        "scripts",
        [],
        scriptlets="%post\nsed -i s/x/y/ /etc/app/app.conf\nchown -R svc /var/lib/app\n",
    )
    image.install(scripts)
    image.write("/bin/sh", mode=0o755)
    image.write("/etc/app/app.conf.rpmnew")
    image.write("/etc/ipavolume.toml", '[scriptlets]\npackages = ["scripts"]\n')
    image.write("/var/lib/app/x")
    image.list("/etc/app/app.conf", "/var/lib/app/")
    before = picture(image.root)
    with pytest.raises(UnfitImageError) as caught:
        image.prepare(strict=True)
    codes = [one.code for one in caught.value.refused]
    assert codes == ["rpm-leftover", "replaced-by-scriptlet", "passed-by-scriptlet"]
    assert "'/data/var/lib/app'" in caught.value.refused[-1].message
    assert picture(image.root) == before
    assert [one.code for one in image.prepare().findings] == ["single-file", *codes]


def test_an_entry_point_for_systemd_that_would_execute_nothing_is_named(image: Image) -> None:
    image.write("/usr/lib/systemd/systemd", mode=0o755)
    (image.write("/usr/sbin/x").parent / "init").symlink_to("/usr/lib/systemd/systemd")
    image.write("/usr/bin/ipavolume", mode=0o755)
    image.list("/etc/app/")
    (finding,) = image.prepare().findings
    assert (finding.code, finding.path) == ("nothing-to-execute", "/etc/ipavolume.toml")
    # Good to know: what is executed may be the image's CMD.
    image.prepare(strict=True)
    image.write("/etc/ipavolume.toml", '[start]\nexec = ["/usr/sbin/init"]\n')
    assert image.prepare().findings == ()


def test_only_codes_of_warnings_can_be_accepted(image: Image) -> None:
    for word, text in (("list-globs", "is no code"), ("list-glob", "cannot be accepted")):
        with pytest.raises(UsageError, match=text):
            Findings(strict=True, accepted=[word])


def test_the_profile_warns_of_nothing_that_it_brings_itself(tmp_path: Path, package: Path) -> None:
    """A strict build passes, too: what its lists have is for every image."""
    image = make_image(tmp_path / "freeipa", [package])
    image.write("/etc/ipavolume.toml", 'profile = "freeipa"\n[scriptlets]\npackages = []\n')
    result = image.prepare(strict=True)
    assert [one.code for one in result.findings] == ["profile-files"]
    image.write("/etc/volume-data-list", "/etc/ap/\n/etc/krb5.keytab\n")
    with pytest.raises(UnfitImageError) as caught:
        image.prepare(strict=True)
    assert [one.code for one in caught.value.refused] == ["absent-directory"]


# -- names of the configuration ----------------------------------------------------------


def test_names_that_mean_nothing_in_this_image_are_warned_of(image: Image) -> None:
    """Words 13."""
    image.write("/usr/sbin/app", mode=0o755)
    image.write("/etc/app/ui/page")
    image.write("/usr/lib/systemd/system/app@.service", "[Service]\n")
    image.list("/etc/app/")
    image.write(
        "/etc/ipavolume.toml",
        '[accept]\nguard = ["ap*", "app-feature", "?gone", "typo"]\n'
        '[start]\nexec = ["app", "--serve"]\nsupervise = true\n'
        '[first-run]\ncommand = ["/usr/sbin/app-install"]\n'
        "[verify]\non-failure = 'rollback'\n"
        '[ready]\nunits = ["app@one.service", "app@*.service", "other.service"]\n'
        '[files]\nrefresh = ["/etc/app/ui/*", "/etc/app/iu/*"]\n',
    )
    assert [(one.code, one.message.split("'")[1]) for one in image.prepare().findings] == [
        ("unknown-guard", "typo"),
        ("no-program", "/usr/sbin/app-install"),
        ("snapshot-not-sure", "rollback"),
        ("unknown-unit", "other.service"),
        ("unused-refresh", "/etc/app/iu/*"),
    ]


def test_a_script_of_system_v_is_a_unit_where_systemd_makes_one_of_it(image: Image) -> None:
    """Debian 12 has slapd and others as such a script alone; it was said that there is no unit."""
    image.write("/etc/init.d/slapd", "#!/bin/sh\n", mode=0o755)
    image.write("/etc/init.d/other.sh", "#!/bin/sh\n", mode=0o755)
    image.write("/etc/init.d/README", mode=0o644)
    image.write(
        "/etc/ipavolume.toml",
        '[ready]\nunits = ["slapd.service", "other.service", "README.service"]\n',
    )
    image.list("/etc/app/")

    def unknown() -> list[str]:
        found = image.prepare().findings
        return [one.message.split("'")[1] for one in found if one.code == "unknown-unit"]

    assert unknown() == ["slapd.service", "other.service", "README.service"]
    image.write("/usr/lib/systemd/system-generators/systemd-sysv-generator", mode=0o755)
    assert unknown() == ["README.service"]


# -- where packages come from ------------------------------------------------------------


def _make_database(image: Image, directory: str) -> None:
    words = ["rpm", "--root", str(image.root), "--dbpath", directory, "--initdb"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def test_the_database_with_packages_is_read(image: Image) -> None:
    """F34: an empty one is at the place that is looked at first."""
    _make_database(image, "/usr/lib/sysimage/rpm")
    image.list("/etc/app/")
    image.prepare()
    assert [one.name for one in image.header().packages] == ["app"]
    assert image.records()["/data/etc/app/app.conf"].package == "app"


def test_no_package_at_all_is_an_error_unless_it_is_said(tmp_path: Path) -> None:
    """F34."""
    image = make_image(tmp_path / "root")
    _make_database(image, "/var/lib/rpm")
    image.write("/etc/app.conf")
    image.list("/etc/app.conf")
    before = picture(image.root)
    with pytest.raises(ConfigurationError) as caught:
        image.prepare()
    assert (caught.value.code, caught.value.exit_status) == ("no-packages", 78)
    assert "--no-packages" in caught.value.hint
    assert picture(image.root) == before
    run_ipavolume("prepare", "--root", str(image.root), "--no-packages")
    assert image.header().packages == ()


def test_a_derived_image_keeps_the_packages_that_were_read_from_files(
    tmp_path: Path, package: Path
) -> None:
    """F11: with their flags, ghosts and scriptlets; what a Dockerfile edits counts as edited."""
    scripts = build_rpm(
        tmp_path,
        "scripts",
        [Packaged(path="/opt/scripts/x", content="x")],
        provides="relocatable\nPrefix: /opt",
        scriptlets="%post\necho done\n%posttrans -p /usr/bin/true\n%triggerin -- app < 3\n",
    )
    image = make_image(tmp_path / "root")
    image.write("/etc/app/app.conf", "x\n")
    image.list("/etc/app/", "/var/log/app.log")
    first = image.prepare(rpms=[package, scripts])
    packages, records = image.header().packages, image.records()
    index = (image.root / "usr/share/ipavolume/scriptlets/index.jsonl").read_bytes()
    assert b'"prefixes":["/opt"]' in index
    again = image.prepare()
    assert (again.build_id, again.changed) == (first.build_id, False)

    image.write("/data-template/etc/app/app.conf", "edited\n")
    image.write("/etc/own.conf")
    image.list("/etc/own.conf", name="own")
    derived = image.prepare(lists=[str(image.root / "etc/volume-own-list")])
    assert derived.build_id != first.build_id
    assert image.header().packages == packages
    assert (image.root / "usr/share/ipavolume/scriptlets/index.jsonl").read_bytes() == index
    new = image.records()
    assert new["/data/var/log/app.log"] == records["/data/var/log/app.log"]
    edited, shipped = new["/data/etc/app/app.conf"], records["/data/etc/app/app.conf"]
    assert (edited.package, edited.flags) == ("app", shipped.flags)
    assert edited.rpm_digest == f"sha256:{shipped.content}"
    assert new["/data/etc/own.conf"].package == ""


def test_a_database_that_was_made_while_the_image_was_built_is_named_before_it_is_moved(
    image: Image,
) -> None:
    """Debian's ``mariadb-server`` makes one; an upgrade would mix that of the next image in."""
    for name in ("ibdata1", "undo001", "mysql/user.frm"):
        image.write(f"/var/lib/mysql/{name}", "x")
    # Once, though each database in the cluster has the mark, too.
    for name in ("15/main/base/1/PG_VERSION", "15/main/PG_VERSION"):
        image.write(f"/var/lib/postgresql/{name}", "15\n")
    image.write("/srv/cache/dump.rdb", "")
    image.write("/srv/ui/data.mdb", "x")
    # A configuration, and what is named by two directories one of which is listed.
    image.write("/etc/docker/registry/config.yml", "x")
    image.write("/var/lib/docker/registry/x", "x")
    # What the next image has more is put among the volume's entries.
    image.write("/etc/ldap/slapd.d/cn=config.ldif")
    image.write("/etc/ldap/slapd.d/cn=config/cn=schema/cn={0}core.ldif")
    image.write("/tmp/app/PG_VERSION", "15\n")
    image.write(
        "/etc/ipavolume.toml",
        '[files]\nrefresh = ["/srv/ui/*"]\n'
        '[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/scratch"\nlists = ["/etc/volume-scratch-list"]\nvolatile = true\n',
    )
    image.list(
        *("/var/lib/mysql/", "/srv/cache/", "/srv/ui/", "/etc/docker/", "/var/lib/docker/"),
        *("/var/lib/postgresql/", "/etc/ldap/"),
    )
    image.write("/etc/volume-scratch-list", "/tmp/app/\n")
    before = picture(image.root)
    with pytest.raises(UnfitImageError) as caught:
        image.prepare(strict=True)
    places = ("etc/ldap/slapd.d", "var/lib/docker", "var/lib/mysql", "var/lib/postgresql/15/main")
    named = [("shipped-database", f"/{name}") for name in places]
    assert [(one.code, one.path) for one in caught.value.refused] == named
    assert "'ibdata1', MySQL or MariaDB" in caught.value.refused[2].message
    assert picture(image.root) == before
    # It is named again by a build on top of this one, which finds it in the template.
    assert codes(image) == named == codes(image)
