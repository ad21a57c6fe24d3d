"""A directory server's Berkeley database, and an image that cannot open it as it is."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest
from support.steps import Scene, file_actions, loaded, package, ship

from ipavolume.steps import Command, Refuse, Remove, StepAction, Warn, Write

DSE: Final = "etc/dirsrv/slapd-localhost/dse.ldif"
STATE: Final = "var/lib/dirsrv/slapd-localhost"
PLUGINS: Final = "usr/lib/x86_64-linux-gnu/dirsrv/plugins"
MASK: Final = "etc/ipavolume/upgrade_steps/s0210_directory_server_to_lmdb.py"
ELF: Final = b"\x7fELF\x02\x01\x01\0%s\0liblmdb.so.0\0"
WITH_LIBDB: Final = ELF % b"libdb-5.3.so"
WITH_READER: Final = ELF % b"librobdb.so"
WITH_NEITHER: Final = ELF % b""

# As 389-ds-base 2.3.1 of Debian 12 wrote it, without what has nothing to do with databases.
LDIF: Final = """\
dn: cn=config
cn: config
objectClass: top
objectClass: extensibleObject
objectClass: nsslapdConfig
nsslapd-lockdir: /run/lock/dirsrv/slapd-localhost
nsslapd-ldifdir: /var/lib/dirsrv/slapd-localhost/ldif
nsslapd-rundir: /run/dirsrv
nsslapd-port: 389
nsslapd-localuser: {user}

dn: cn=ldbm database,cn=plugins,cn=config
objectClass: top
objectClass: nsSlapdPlugin
cn: ldbm database
nsslapd-pluginPath: libback-ldbm

dn: cn=config,cn=ldbm database,cn=plugins,cn=config
objectClass: top
objectClass: extensibleObject
cn: config
nsslapd-lookthroughlimit: 5000
nsslapd-directory: {directory}
nsslapd-exclude-from-export: entrydn entryid dncomp parentid numSubordinates t
 ombstonenumsubordinates entryusn
{implement}nsslapd-backend-opt-level: 1

dn: cn={second},cn=ldbm database,cn=plugins,cn=config
objectClass: top
objectClass: extensibleObject
objectClass: nsBackendInstance
cn: {second}
nsslapd-suffix: o=second
nsslapd-directory: /var/lib/dirsrv/slapd-localhost/db/Second

dn: cn=userroot,cn=ldbm database,cn=plugins,cn=config
objectClass: top
objectClass: extensibleObject
objectClass: nsBackendInstance
cn: userroot
nsslapd-suffix: dc=example,dc=test
nsslapd-directory: /var/lib/dirsrv/slapd-localhost/db/userroot

dn: cn=bdb,cn=config,cn=ldbm database,cn=plugins,cn=config
objectClass: extensibleobject
objectClass: top
cn: bdb
nsslapd-dbcachesize: {cache}
nsslapd-db-logdirectory: /var/lib/dirsrv/slapd-localhost/db
nsslapd-db-home-directory: {home}

dn: cn=encrypted attribute keys,cn=Second,cn=ldbm database,cn=plugins,cn=confi
 g
objectClass: top
objectClass: extensibleObject
cn: encrypted attribute keys

"""
MAP: Final = """\
dn: cn=mdb,cn=config,cn=ldbm database,cn=plugins,cn=config
objectClass: extensibleObject
objectClass: top
cn: mdb
nsslapd-mdb-max-size: 21474836480
nsslapd-mdb-max-readers: 0
nsslapd-mdb-max-dbs: 128
nsslapd-db-durable-transaction: on
nsslapd-search-bypass-filter-test: on
nsslapd-serial-lock: on

"""


def ldif(
    kind: str = "bdb",
    *,
    user: str = "dirsrv",
    directory: str = f"/{STATE}/db",
    second: str = "Second",
    cache: str = "29454335",
    home: str = f"/{STATE}/db",
) -> str:
    """Return a dse.ldif."""
    return LDIF.format(
        implement=f"nsslapd-backend-implement: {kind}\n" if kind else "",
        user=user,
        directory=directory,
        second=second,
        cache=cache,
        home=home,
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The volume of a server of Debian 12 that was stopped cleanly, and an image of Debian 13."""
    scene = Scene(
        top=tmp_path,
        lists={"/data": ("/etc/dirsrv", "/var/lib/dirsrv", "/var/log/dirsrv")},
        packages=(package("389-ds-base", "3.1.2-1"),),
        recorded=(package("389-ds-base", "2.3.1-1"),),
        image_os=("debian", "13"),
    )
    give_library(scene, WITH_LIBDB)
    scene.put(DSE, ldif(), mode=0o600)
    os.chown(scene.volume() / DSE, 17, 18)
    for name in ("DBVERSION", "Second/DBVERSION", "userroot/DBVERSION"):
        scene.put(f"{STATE}/db/{name}", "bdb/5.3/libback-ldbm/newidl/rdn-format-3/dn-4514-1\n")
    scene.put(f"{STATE}/db/guardian", "cachesize:29454335\nncache:0\nversion:5\nlocks:10000\n")
    for name in ("__db.001", "log.0000000001", "Second/id2entry.db", "Second/cn.db"):
        scene.put(f"{STATE}/db/{name}", b"\0" * 4096)
    for name in ("id2entry.db", "uid.db", "replication_changelog.db"):
        scene.put(f"{STATE}/db/userroot/{name}", b"\0" * 8192)
    ship(scene.image)
    return scene


def give_library(scene: Scene, content: bytes) -> None:
    """Give the image a server that was built so."""
    library = scene.image / PLUGINS / "libback-ldbm.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.write_bytes(content)
    if content == WITH_READER:
        (library.parent.parent / "librobdb.so").write_bytes(b"\x7fELF")


def convert(scene: Scene) -> tuple[StepAction, ...]:
    """Return what the conversion wants done."""
    return scene.plan(loaded(scene.image, "s0210_directory_server_to_lmdb"))


def refuse(scene: Scene) -> tuple[StepAction, ...]:
    """Return what the step before the conversion says."""
    return scene.plan(loaded(scene.image, "s0200_directory_server_without_bdb"))


def words(action: StepAction) -> str:
    """Return a command of the server's account as one text, or ""."""
    if not isinstance(action, Command):
        return ""
    at = action.words.index("--") + 1 if action.words[0] == "setpriv" else 0
    return shlex.join(action.words[at:])


def order(actions: tuple[StepAction, ...], *wanted: str) -> list[int]:
    """Return the positions of the actions that say these."""
    said = [words(action) or repr(action) for action in actions]
    return [next(n for n, text in enumerate(said) if one in text) for one in wanted]


# -- the conversion ----------------------------------------------------------------------


def test_nothing_is_switched_before_everything_is_exported_and_nothing_imported_before(
    scene: Scene,
) -> None:
    actions = convert(scene)
    found = order(
        actions,
        "install -d -o dirsrv -g dirsrv -m 0770 /run/dirsrv /run/lock/dirsrv",
        "mkdir",
        "rm -f -- ",
        "db2ldif -D /etc/dirsrv/slapd-localhost -n Second -r",
        "db2ldif -D /etc/dirsrv/slapd-localhost -n userroot -r",
        f"dbscan -D bdb -f /{STATE}/db/userroot/replication_changelog.db",
        f"Write(path='/{STATE}/ipavolume-bdb2mdb.exported'",
        f"Write(path='/{DSE}'",
        "ldif2db -D /etc/dirsrv/slapd-localhost -n Second -i",
        "ldif2db -D /etc/dirsrv/slapd-localhost -n userroot -i",
        "dbscan -D mdb",
        f"Remove(path='/{STATE}/ipavolume-bdb2mdb.exported'",
        "rm -rf",
    )
    assert found == sorted(found)
    # Only the one that replicates has a changelog.
    assert sum("dbscan -D bdb" in words(action) for action in actions) == 1
    assert [action.code for action in actions if isinstance(action, Warn)] == ["old-database-kept"]


def test_the_configuration_names_the_new_database_and_is_the_same_otherwise(scene: Scene) -> None:
    scene.perform(*convert(scene))
    file = scene.volume() / DSE
    assert file.read_text() == ldif("mdb") + MAP
    st = file.stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (17, 18, 0o600)
    # Put back, it would have the server open the old database.
    assert not scene.saved(DSE).exists()
    assert convert(scene) == ()


def test_attributes_are_found_however_their_names_are_written(scene: Scene) -> None:
    text = ldif().replace("nsslapd-backend-implement: bdb", "nsslapd-Backend-Implement: BDB")
    (scene.volume() / DSE).write_text(text)
    scene.perform(*convert(scene))
    assert (scene.volume() / DSE).read_text() == ldif("mdb") + MAP


def test_settings_of_an_earlier_lmdb_are_replaced(scene: Scene) -> None:
    before = ldif() + MAP.replace("21474836480", "1048576")
    (scene.volume() / DSE).write_text(before)
    scene.perform(*convert(scene))
    assert (scene.volume() / DSE).read_text() == ldif("mdb") + MAP
    assert not scene.saved(DSE).exists()
    kept = scene.volume() / f"{DSE}.bdb"
    assert kept.read_text() == before
    assert kept.stat().st_mode & 0o7777 == 0o600


def test_the_limits_of_the_new_database_leave_room_for_a_large_one(scene: Scene) -> None:
    index = "dn: cn=i{},cn=index,cn=userroot,cn=ldbm database,cn=plugins,cn=config\ncn: i\n\n"
    text = ldif() + "".join(index.format(number) for number in range(100))
    (scene.volume() / DSE).write_text(text)
    os.truncate(scene.volume() / STATE / "db/userroot/uid.db", 30 << 30)
    (dse,) = (a for a in convert(scene) if isinstance(a, Write) and a.path == f"/{DSE}")
    limits = dict(line.split(": ") for line in dse.content.decode().split("\n") if "-mdb-" in line)
    assert int(limits["nsslapd-mdb-max-size"]) > 1.2 * (30 << 30)
    assert int(limits["nsslapd-mdb-max-dbs"]) == 256


def test_only_directories_of_the_container_are_made_by_root(scene: Scene) -> None:
    commands = [action for action in convert(scene) if isinstance(action, Command)]
    by_root = [command.words for command in commands if command.words[0] != "setpriv"]
    assert len(by_root) == 1
    (made,) = by_root
    assert made[0] == "install"
    assert all(word.startswith("/run/") for word in made if "/" in word)
    others = [command.words for command in commands if command.words[0] == "setpriv"]
    assert all({"--reuid=dirsrv", "--regid=dirsrv", "--init-groups"} < set(one) for one in others)


def test_a_failed_command_stops_it_and_an_interrupted_one_is_not_the_only_one_repeated(
    scene: Scene,
) -> None:
    commands = [action for action in convert(scene) if isinstance(action, Command)]
    assert len(commands) > 8
    assert all(command.repeat and not command.may_fail for command in commands)


def test_where_nothing_says_which_database_it_is_that_is_written_before_the_export(
    scene: Scene,
) -> None:
    (scene.volume() / DSE).write_text(ldif(""))
    actions = convert(scene)
    writes = [a.content.decode() for a in actions if isinstance(a, Write) and a.path == f"/{DSE}"]
    assert len(writes) == 2
    for kind, text in zip(("bdb", "mdb"), writes, strict=True):
        assert text.count("nsslapd-backend-implement") == 1
        assert f"nsslapd-backend-opt-level: 1\nnsslapd-backend-implement: {kind}\n\n" in text
    assert writes[0].replace("nsslapd-backend-implement: bdb\n", "") == ldif("")
    assert order(actions, f"Write(path='/{DSE}'") < order(actions, "db2ldif")
    scene.perform(*actions)
    assert not scene.saved(DSE).exists()


# -- interrupted -------------------------------------------------------------------------


def test_interrupted_in_the_export_it_begins_again(scene: Scene) -> None:
    before = convert(scene)
    # The regions were removed already, and the opened database has no guardian.
    for name in ("__db.001", "guardian"):
        (scene.volume() / STATE / "db" / name).unlink()
    scene.put(f"{STATE}/ipavolume-bdb2mdb/Second.ldif", "version: 1\n\n# entry")
    assert convert(scene) == before


def test_interrupted_in_the_import_that_begins_again_without_another_export(scene: Scene) -> None:
    before = convert(scene)
    writes = [action for action in before if isinstance(action, Write)]
    scene.perform(*writes)
    for name in ("Second.ldif", "userroot.ldif", "userroot.changelog"):
        scene.put(f"{STATE}/ipavolume-bdb2mdb/{name}")
    for name in ("data.mdb", "lock.mdb", "INFO.mdb"):
        scene.put(f"{STATE}/db/{name}")
    actions = convert(scene)
    assert not any("db2ldif" in words(a) or isinstance(a, Write) for a in actions)
    removed = [a for a in actions if isinstance(a, Remove)]
    assert [a.path.rpartition("/")[2] for a in removed] == [
        *("data.mdb", "lock.mdb", "INFO.mdb", "ipavolume-bdb2mdb.exported"),
    ]
    assert not any(action.keep_copy for action in removed)
    imports = [words(a) for a in before if "ldif2db" in words(a) or "--import" in words(a)]
    assert [words(a) for a in actions if "ldif2db" in words(a) or "--import" in words(a)] == imports
    assert order(actions, "data.mdb", "ldif2db") == sorted(order(actions, "data.mdb", "ldif2db"))
    assert words(actions[0]).startswith("install -d ")
    scene.perform(*actions)
    (left,) = convert(scene)
    assert words(left) == f"rm -rf -- /{STATE}/ipavolume-bdb2mdb"


def test_the_files_of_the_old_database_are_all_there_until_the_end(scene: Scene) -> None:
    def database() -> dict[str, bytes]:
        above = scene.volume() / STATE / "db"
        files = (path for path in above.rglob("*") if path.is_file())
        return {str(p): p.read_bytes() for p in files if not p.name.startswith("__db.")}

    before = database()
    actions = convert(scene)
    files = file_actions(actions)
    for action in files:
        scene.perform(action)
        assert database() == before
    deleting = [words(a) for a in actions if words(a).startswith(("rm", "sh -c 'rm"))]
    assert len(deleting) == 3
    assert all("__db.[0-9]*" in one or one.endswith("ipavolume-bdb2mdb") for one in deleting)


def test_a_map_that_no_configuration_uses_is_kept_in_a_copy(scene: Scene) -> None:
    scene.put(f"{STATE}/db/data.mdb", "of long ago")
    scene.perform(*convert(scene))
    assert scene.saved(f"{STATE}/db/data.mdb").read_text() == "of long ago"


# -- where it is needed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "why",
    ["opens as it is", "same release", "no regions", "libdb of a package of its own", "mdb"],
)
def test_what_the_image_can_open_as_it_is_stays_as_it_is(scene: Scene, why: str) -> None:
    match why:
        case "opens as it is":
            scene.packages = (package("389-ds-base", "2.3.1-1"),)
            scene.image_os = ("debian", "12")
        case "same release":
            scene.image_os = ("fedora", "42")
        case "no regions":
            (scene.volume() / STATE / "db/__db.001").unlink()
        case "libdb of a package of its own":
            give_library(scene, WITH_NEITHER)
            (scene.image / PLUGINS / "libback-bdb.so").write_bytes(b"\x7fELF")
            (scene.volume() / STATE / "db/__db.001").unlink()
        case _:
            (scene.volume() / DSE).write_text(ldif("mdb"))
    (scene.image / MASK).parent.mkdir(parents=True)
    (scene.image / MASK).symlink_to("/dev/null")
    assert convert(scene) == ()
    assert refuse(scene) == ()


def test_regions_elsewhere_on_the_volume_are_found(scene: Scene) -> None:
    (scene.volume() / STATE / "db/__db.001").rename(scene.volume() / STATE / "__db.001")
    (scene.volume() / DSE).write_text(ldif(home=f"/{STATE}"))
    assert any("/__db.[0-9]*' sh /" + STATE in words(action) + " " for action in convert(scene))


@pytest.mark.parametrize("regions", [True, False])
def test_an_image_that_can_only_read_such_databases_converts_every_one(
    scene: Scene, *, regions: bool
) -> None:
    give_library(scene, WITH_READER)
    scene.image_os = ("fedora", "42")
    if not regions:
        (scene.volume() / STATE / "db/__db.001").unlink()
    assert any("db2ldif" in words(action) for action in convert(scene))
    assert refuse(scene) == ()


def test_every_instance_is_converted_but_a_removed_one(scene: Scene) -> None:
    text = ldif().replace("slapd-localhost", "slapd-OTHER")
    for name in ("OTHER", "OTHER.removed"):
        scene.put(f"etc/dirsrv/slapd-{name}/dse.ldif", text)
    for name in ("Second/id2entry.db", "__db.001", "guardian"):
        scene.put(f"var/lib/dirsrv/slapd-OTHER/db/{name}")
    actions = convert(scene)
    assert not any(isinstance(action, Refuse) for action in actions)
    said = [words(action) for action in actions if "db2ldif" in words(action)]
    assert [text.partition(" -D ")[2] for text in said] == [
        "/etc/dirsrv/slapd-OTHER -n Second -r -a -",
        "/etc/dirsrv/slapd-localhost -n Second -r -a -",
        "/etc/dirsrv/slapd-localhost -n userroot -r -a -",
    ]


# -- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("library", [WITH_LIBDB, WITH_READER])
def test_an_image_that_masks_the_conversion_refuses_what_it_cannot_open(
    scene: Scene, library: bytes
) -> None:
    give_library(scene, library)
    assert refuse(scene) == ()
    (scene.image / MASK).parent.mkdir(parents=True)
    (scene.image / MASK).symlink_to("/dev/null")
    (action,) = refuse(scene)
    assert isinstance(action, Refuse)
    assert action.code == "conversion-masked"
    assert "localhost" in action.text
    assert "s0210_directory_server_to_lmdb, is masked" in action.text
    assert "3.1.2-1" in action.text
    assert f"/{MASK}" in action.hint


def test_a_half_way_converted_one_is_refused_where_the_conversion_is_masked(scene: Scene) -> None:
    scene.perform(*(action for action in convert(scene) if isinstance(action, Write)))
    (scene.image / MASK).parent.mkdir(parents=True)
    (scene.image / MASK).symlink_to("/dev/null")
    (action,) = refuse(scene)
    assert isinstance(action, Refuse)
    assert action.code == "conversion-masked"


def test_an_image_without_any_libdb_refuses_and_converts_nothing(scene: Scene) -> None:
    give_library(scene, WITH_NEITHER)
    (action,) = refuse(scene)
    assert isinstance(action, Refuse)
    assert action.code == "no-bdb"
    assert convert(scene) == ()


@pytest.mark.parametrize(
    ("library", "replicates", "lost"),
    [
        (WITH_READER, True, "its last changes"),
        (WITH_READER, False, "its last changes"),
        (WITH_LIBDB, True, "its changelog"),
        (WITH_LIBDB, False, ""),
    ],
)
def test_a_server_that_was_not_stopped_cleanly_is_left_to_who_can_replay_its_logs(
    scene: Scene,
    library: bytes,
    replicates: bool,  # noqa: FBT001 - a column of the table
    lost: str,
) -> None:
    give_library(scene, library)
    (scene.volume() / STATE / "db/guardian").unlink()
    if not replicates:
        (scene.volume() / STATE / "db/userroot/replication_changelog.db").unlink()
    found = [action for action in convert(scene) if isinstance(action, Refuse)]
    assert [action.code for action in found] == (["unclean"] if lost else [])
    if lost:
        assert "not stopped cleanly" in found[0].text
        assert f"would lose {lost}" in found[0].text
        assert "image before" in found[0].hint


@pytest.mark.parametrize("what", ["entries", "changelog", "cache"])
def test_without_room_for_both_databases_it_refuses_before_anything(
    scene: Scene, what: str
) -> None:
    file = scene.volume() / STATE / "db/userroot"
    free = os.statvfs(scene.volume())
    more = free.f_bavail * free.f_frsize // 2 + (1 << 30)
    if what == "cache":
        (scene.volume() / DSE).write_text(ldif(cache=str(2 * more)))
    else:
        name = "id2entry.db" if what == "entries" else "replication_changelog.db"
        os.truncate(file / name, more)
    action = convert(scene)[0]
    assert isinstance(action, Refuse)
    assert action.code == "no-space"
    assert " MB are free" in action.text
    assert "localhost" in action.text


def test_room_that_an_interrupted_attempt_took_is_not_asked_for_twice(scene: Scene) -> None:
    free = os.statvfs(scene.volume())
    half = free.f_bavail * free.f_frsize // 2
    os.truncate(scene.volume() / STATE / "db/userroot/id2entry.db", half)
    assert isinstance(convert(scene)[0], Refuse)
    os.truncate(scene.put(f"{STATE}/ipavolume-bdb2mdb/userroot.ldif"), half)
    assert not any(isinstance(action, Refuse) for action in convert(scene))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ldif(user="root"), "runs as 'root'"),
        (ldif(directory="/var/lib/dirsrv/slapd-localhost/gone"), "no directory of the volume"),
        (ldif(directory="/var/lib/dirsrv"), "has its database in '/var/lib/dirsrv'"),
        (ldif(directory="/data/../../../../etc"), "has its database in '/data/../../../../etc'"),
        (ldif(home="/$(reboot)"), "'/$(reboot)'"),
        (ldif(second="Sec ond;"), "backends with the names"),
        (ldif().replace("objectClass: nsBackendInstance\ncn: Second", "cn: Second"), "db/Second"),
    ],
)
def test_what_is_not_as_servers_make_it_is_refused_and_left_alone(
    scene: Scene, text: str, said: str
) -> None:
    give_library(scene, WITH_READER)
    (scene.volume() / DSE).write_text(text)
    (action,) = convert(scene)
    assert isinstance(action, Refuse)
    assert action.code == "not-convertible"
    assert said in action.text


def test_a_service_cannot_lead_the_conversion_to_files_of_others(scene: Scene) -> None:
    (scene.volume() / DSE).write_text(ldif("mdb", directory="/var/lib/dirsrv/other/db"))
    scene.put("var/lib/dirsrv/other/db/data.mdb")
    scene.put("var/lib/dirsrv/other/ipavolume-bdb2mdb.exported")
    assert convert(scene) == ()


def test_a_database_behind_a_link_is_refused(scene: Scene) -> None:
    (scene.volume() / STATE / "db").rename(scene.volume() / "elsewhere")
    (scene.volume() / STATE / "db").symlink_to("/data/elsewhere")
    give_library(scene, WITH_READER)
    (action,) = convert(scene)
    assert isinstance(action, Refuse)
    assert "no directory of the volume" in action.text


# -- the commands that must not hide a failure ---------------------------------------------


@pytest.mark.parametrize(
    ("file", "program", "fault"),
    [
        ("out", "echo exported", ""),
        ("out", "echo exported; exit 3", "its status"),
        ("full", "echo exported", "no space"),
        ("missing/out", "echo exported", "no directory"),
    ],
)
def test_an_export_that_failed_or_found_the_disk_full_is_a_failure(
    scene: Scene, tmp_path: Path, file: str, program: str, fault: str
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    # Of an attempt before, which ended well.
    (tmp_path / "out.status").write_text("0\n")
    script = script_of(scene, "db2ldif")
    target = tmp_path / file
    done = run_script(script, str(target), "sh", "-c", program)
    assert (done.returncode != 0) is bool(fault)
    if not fault:
        assert target.read_text() == "exported\n"


@pytest.mark.parametrize(
    ("imports", "reads_back", "is_right"),
    [("exit 0", "cat changes", True), ("exit 1", "cat changes", False), ("exit 0", "", False)],
)
def test_an_import_of_a_changelog_that_stopped_early_is_a_failure(
    scene: Scene, tmp_path: Path, imports: str, reads_back: str, *, is_right: bool
) -> None:
    (tmp_path / "changes").write_text("k: 00\nv: 01\n\nk: 02\nv: 03")
    dbscan = tmp_path / "dbscan"
    reads = reads_back or "head -1 changes"
    dbscan.write_text(f"#!/bin/sh\ncase $* in *--import*) {imports};; *) {reads};; esac\n")
    dbscan.chmod(0o755)
    script = script_of(scene, "--import")
    done = run_script(script, "changes", "database", path=str(tmp_path))
    assert (done.returncode == 0) is is_right


def script_of(scene: Scene, said: str) -> str:
    """Return the shell's script in the first command that says this."""
    command = next(a for a in convert(scene) if isinstance(a, Command) and said in words(a))
    return command.words[command.words.index("-c") + 1]


def run_script(script: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run a script as the command does."""
    return subprocess.run(
        ["sh", "-c", script, *arguments],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=path or "/",
        env={"PATH": f"{path}:{os.environ['PATH']}"},
    )
