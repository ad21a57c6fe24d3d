"""What an audit decides; the containers that it is about are in tests/container."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ipavolume.engines import audit, engine
from ipavolume.engines.audit import Change, Declared, Fault, Finding, Kind, Question, There

LINKS = {
    "/etc/app": "/data/etc/app",
    "/etc/app.conf": "/data/etc/app.conf",
    "/etc/group.d/app": "/data/etc/group.d/app",
    "/var/lib/app": "/data/var/lib/app",
}
VOLUMES = (
    Declared(mount="/data", volatile=False, path_list="/etc/volume-data-list"),
    Declared(mount="/scratch", volatile=True, path_list=""),
)


def found(
    diff: str,
    *,
    mounted: tuple[str, ...] = ("/data",),
    there: Mapping[str, There] | None = None,
) -> tuple[Finding, ...]:
    """Return what an audit finds in what ``docker diff`` printed."""
    changes = [Change(letter=letter, path=path) for letter, path in engine.parse_diff(diff)]
    question = Question(changes=changes, mounted=mounted, volumes=VOLUMES, links=LINKS)
    looked = audit.places_to_look_at(question)
    assert set(there or {}) <= set(looked), looked
    return audit.audit(question, there or {})


def one(diff: str, **options: object) -> Finding:
    """Return the only finding."""
    (finding,) = found(diff, **options)  # type: ignore[arg-type]
    return finding


FILE = There(kind=Kind.FILE)
DIRECTORY = There(kind=Kind.DIRECTORY)


# -- nothing to say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "diff",
    [
        "",
        "C /etc\nA /etc/hosts\nC /etc/hostname\nC /etc/resolv.conf\nA /etc/mtab\n",
        "A /.dockerenv\nC /dev\nA /dev/console\nA /proc\nA /sys\nC /run\nA /run/secrets\n",
        "A /data\n",
        "C /\nA /sbin\nA /sbin/docker-init\n",
        "C /usr\nC /usr/sbin\nA /usr/sbin/docker-init\n",
        "C /usr\nC /usr/bin\nA /usr/bin/docker-init\n",
    ],
)
def test_what_the_engine_does_itself_is_left_out(diff: str) -> None:
    assert found(diff) == ()


def test_mount_points_are_left_out_with_the_directories_made_for_them() -> None:
    diff = "A /a\nA /a/b\nA /a/b/c\nC /mnt\nA /mnt/x\nC /var\nC /var/log\n"
    assert found(diff, mounted=("/data", "/a/b/c", "/mnt/x", "/var/log/y")) == ()


def test_a_link_that_was_made_again_is_no_stray() -> None:
    assert found("C /etc\nC /etc/app.conf\n", there={"/etc/app.conf": link("etc/app.conf")}) == ()


def link(target: str) -> There:
    """Return a link onto the volume."""
    return There(kind=Kind.LINK, target=f"/data/{target}")


# -- written outside ---------------------------------------------------------------------


def test_a_directory_that_only_changed_because_of_what_is_in_it_is_left_out() -> None:
    finding = one("C /var\nC /var/lib\nA /var/lib/state\n", there={"/var/lib/state": FILE})
    assert (finding.fault, finding.path, finding.paths) == (Fault.ADDED, "/var/lib/state", 1)
    assert finding.line == "/var/lib/state"


def test_the_highest_new_directory_is_the_line() -> None:
    finding = one("C /var\nC /var/log\nA /var/log/new\nA /var/log/new/a\nA /var/log/new/b\n")
    assert (finding.path, finding.paths, finding.line) == ("/var/log/new", 3, "/var/log/new/")


def test_a_new_directory_with_nothing_in_it_is_a_line_with_a_slash() -> None:
    assert one("C /srv\nA /srv/new\n", there={"/srv/new": DIRECTORY}).line == "/srv/new/"


def test_a_changed_file_is_its_own_line() -> None:
    finding = one("C /etc\nC /etc/krb5.conf\n", there={"/etc/krb5.conf": FILE})
    assert (finding.fault, finding.line) == (Fault.CHANGED, "/etc/krb5.conf")


def test_several_changes_in_one_directory_make_it_the_line() -> None:
    diff = "C /etc\nC /etc/svc\nC /etc/svc/a\nA /etc/svc/b\n"
    assert [finding.line for finding in found(diff)] == ["/etc/svc/"] * 2
    assert audit.lines(found(diff)) == ("/etc/svc/",)
    shared = "C /etc\nC /etc/a\nA /etc/b\n"
    assert audit.lines(found(shared)) == ("/etc/a", "/etc/b")


@pytest.mark.parametrize(
    ("below", "line"),
    [
        ("A /var/log/journal\nA /var/log/journal/ID\n", "/var/log/journal/"),
        ("C /var/log/journal\nA /var/log/journal/ID\n", "/var/log/journal/"),
        ("C /var/log/journal\nA /var/log/journal/ID.app\n", "/var/log/journal/"),
        (
            "C /var/log/journal\nC /var/log/journal/ID\n"
            "C /var/log/journal/ID/system.journal\nA /var/log/journal/ID/user-1000.journal\n",
            "/var/log/journal/",
        ),
        (
            "C /var/log/journal\nC /var/log/journal/ID\nD /var/log/journal/ID/x\n",
            "/var/log/journal/",
        ),
        ("A /var/log/ID\n", ""),
        ("A /var/log/ID0\n", "/var/log/ID0"),
    ],
)
def test_a_line_holds_for_every_machine(below: str, line: str) -> None:
    """Another container has another machine id (F73)."""
    diff = f"C /var\nC /var/log\n{below}".replace("ID", "0f3c4d5e6a7b8c9d" * 2)
    wanted = line.replace("ID", "0f3c4d5e6a7b8c9d" * 2)
    assert audit.lines(found(diff)) == ((wanted,) if wanted else ())


def test_compiled_python_is_nothing_that_was_written() -> None:
    """Python makes it anew where it is missing (F73)."""
    diff = (
        "C /usr\nC /usr/lib\nC /usr/lib/app\nA /usr/lib/app/__pycache__\n"
        "A /usr/lib/app/__pycache__/a.pyc\nC /usr/lib/old\nC /usr/lib/old/__pycache__\n"
        "C /usr/lib/old/__pycache__/b.pyc\nD /usr/lib/old/__pycache__/c.pyc\n"
        "A /usr/lib/new\nA /usr/lib/new/__pycache__\n"
    )
    assert found(diff) == ()
    assert one(diff + "A /usr/lib/new/data\n").line == "/usr/lib/new/"
    assert one(diff + "A /usr/lib/app/state\n").line == "/usr/lib/app/state"
    assert one("C /opt\nA /opt/my__pycache__\n").line == "/opt/my__pycache__"


def test_what_systemd_makes_of_the_image_is_nothing_that_was_written() -> None:
    """On a volume it would be another image's: a linker's cache without its libraries."""
    diff = (
        "C /etc\nA /etc/.updated\nC /etc/ld.so.cache\nC /etc/udev\nA /etc/udev/hwdb.bin\n"
        "C /var\nA /var/.updated\nC /var/cache\nA /var/cache/ldconfig\n"
        "A /var/cache/ldconfig/aux-cache\nC /var/lib\nC /var/lib/systemd\n"
        "C /var/lib/systemd/catalog\nC /var/lib/systemd/catalog/database\n"
    )
    assert found(diff) == ()
    assert one(diff + "A /var/lib/systemd/linger\n").line == "/var/lib/systemd/linger"
    assert one(diff + "C /etc/ld.so.conf\n").line == "/etc/ld.so.conf"


def test_accounts_are_never_to_be_listed() -> None:
    findings = found("C /etc\nC /etc/passwd\nA /etc/shadow-\nA /etc/.pwd.lock\n")
    assert [finding.line for finding in findings] == ["", "", ""]
    assert all("accounts belong to the image" in finding.advice for finding in findings)
    assert all(finding.is_wrong for finding in findings)


def test_a_directory_that_changed_itself_is_said_to_have() -> None:
    finding = one("C /opt\nC /opt/app\n", there={"/opt/app": DIRECTORY})
    assert (finding.fault, finding.line) == (Fault.CHANGED, "/opt/app/")
    assert "its mode or owner" in finding.advice
    assert one("C /opt\n", there={"/opt": DIRECTORY}).line == ""


def test_a_deleted_file_cannot_be_listed_but_its_directory() -> None:
    finding = one("C /etc\nD /etc/issue\n")
    assert (finding.fault, finding.line) == (Fault.DELETED, "")
    assert "in every new container" in finding.advice
    assert one("C /etc\nC /etc/svc\nD /etc/svc/a\n").line == "/etc/svc/"
    assert one("C /etc\nC /etc/svc\nD /etc/svc/a\n").paths == 1


def test_a_directory_in_the_place_of_another_is_one_finding() -> None:
    finding = one("C /etc\nD /etc/svc\nA /etc/svc/new\n")
    assert (finding.fault, finding.path, finding.line) == (Fault.CHANGED, "/etc/svc", "/etc/svc/")
    assert "another directory" in finding.advice


def test_a_file_that_went_and_came_is_changed() -> None:
    finding = one("C /etc\nD /etc/issue\nA /etc/issue\n", there={"/etc/issue": FILE})
    assert (finding.fault, finding.line) == (Fault.CHANGED, "/etc/issue")


def test_a_line_that_another_covers_is_not_repeated() -> None:
    findings = found("A /srv/a\nA /srv/a/x\nC /srv\nA /srv/a.b\n", there={"/srv/a.b": FILE})
    assert audit.lines(findings) == ("/srv/a.b", "/srv/a/")
    many = [Finding(fault=Fault.ADDED, path="/x", paths=1, line=line) for line in ("/a/", "/a/b")]
    assert audit.lines(many) == ("/a/",)


# -- strays ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "said", "line"),
    [
        (FILE, "a file is in the place of the link to /data/etc/group.d/app", "/etc/group.d/"),
        (DIRECTORY, "a directory is in the place of the link", ""),
        (link("other"), "the link leads to /data/other, not to /data/etc/group.d/app", ""),
        (There(kind=Kind.NOTHING), "the link to /data/etc/group.d/app is gone", "/etc/group.d/"),
        (There(kind=Kind.OTHER), "something else is in the place", ""),
    ],
)
def test_a_stray_is_named_by_what_is_there(there: There, said: str, line: str) -> None:
    path = "/etc/group.d/app"
    finding = one(f"C /etc\nC /etc/group.d\nC {path}\n", there={path: there})
    assert (finding.fault, finding.path, finding.line) == (Fault.STRAY, path, line)
    assert said in finding.advice


def test_what_is_below_a_stray_belongs_to_it() -> None:
    diff = "C /var\nC /var/lib\nC /var/lib/app\nA /var/lib/app/a\nA /var/lib/app/b\n"
    finding = one(diff, there={"/var/lib/app": DIRECTORY})
    assert (finding.fault, finding.paths, finding.line) == (Fault.STRAY, 3, "")


def test_a_link_that_went_with_its_directory_is_a_stray() -> None:
    findings = found("C /etc\nD /etc/group.d\n")
    assert [(one.fault, one.path) for one in findings] == [
        (Fault.STRAY, "/etc/group.d/app"),
        (Fault.DELETED, "/etc/group.d"),
    ]
    back = found(
        "C /etc\nD /etc/group.d\nA /etc/group.d/app\n",
        there={"/etc/group.d/app": link("etc/group.d/app")},
    )
    assert [one.fault for one in back] == [Fault.CHANGED]


def test_strays_come_first() -> None:
    findings = found("C /etc\nA /etc/a\nC /etc/app\nA /run/x\n", there={"/etc/app": FILE})
    assert [one.fault for one in findings] == [Fault.STRAY, Fault.ADDED, Fault.TEMPORARY]


# -- places of their own kind ------------------------------------------------------------


def test_what_need_not_last_is_its_own_kind_and_nothing_wrong() -> None:
    findings = found("C /run\nA /run/a\nA /run/b\nC /tmp\nA /tmp/c\nA /scratch\nA /scratch/d\n")
    assert [(one.path, one.paths, one.is_wrong) for one in findings] == [
        ("/run", 2, False),
        ("/scratch", 2, False),
        ("/tmp", 1, False),
    ]
    assert findings[0].advice == "this belongs on a tmpfs: --tmpfs /run"
    assert audit.lines(findings) == ()


def test_a_volume_that_is_not_mounted_is_one_finding() -> None:
    finding = one("C /data\nA /data/etc\nA /data/etc/x\n", mounted=())
    assert (finding.fault, finding.path, finding.paths) == (Fault.NOT_MOUNTED, "/data", 2)
    assert finding.is_wrong
    assert "is lost with the container" in finding.advice


# -- names -------------------------------------------------------------------------------


def test_names_with_newlines_are_put_together_again() -> None:
    text = "C /srv\nA /srv/a\nb\nA /srv/c\nA \nC /etc\n"
    assert engine.parse_diff(text) == [
        ("C", "/srv"),
        ("A", "/srv/a\nb"),
        ("A", "/srv/c\nA "),
        ("C", "/etc"),
    ]
    assert engine.parse_diff("") == []


@pytest.mark.parametrize("name", ["a\nb", "\ufffd", "blank ", "tab\t"])
def test_a_name_that_no_list_can_hold_is_kept_by_its_directory(name: str) -> None:
    changes = [Change(letter="A", path=f"{place}/{name}") for place in ("/srv", "/srv/app")]
    question = Question(changes=changes, mounted=(), volumes=VOLUMES, links={})
    findings = audit.audit(question, dict.fromkeys(audit.places_to_look_at(question), FILE))
    assert sorted(finding.line for finding in findings) == ["", "/srv/app/"]
    looked = audit.places_to_look_at(question)
    assert looked == ([] if name == "\ufffd" else [change.path for change in changes])


def test_names_that_are_not_ascii_can_be_listed() -> None:
    assert one("A /srv/ä b#\n").line == "/srv/ä b#"


# -- size --------------------------------------------------------------------------------


def test_no_more_is_looked_at_than_can_be() -> None:
    changes = [Change(letter="A", path=f"/srv/{number}") for number in range(50_000)]
    changes.append(Change(letter="C", path="/etc/app"))
    question = Question(changes=changes, mounted=("/data",), volumes=VOLUMES, links=LINKS)
    looked = audit.places_to_look_at(question)
    assert looked[0] == "/etc/app"
    assert len(looked) == 201
    assert len(audit.audit(question, {})) == 50_001
