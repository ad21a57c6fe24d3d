"""The steps that are shipped, on volumes as they really look before and after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support.command import PROJECT, clean_environment
from support.images import picture
from support.steps import Scene, file_actions, loaded, package, ship, steps_in

from ipavolume.steps import Command, Refuse, Step, StepAction, Warn, When, Write
from ipavolume.steps.declaration import applies
from ipavolume.steps.views import RollbackVolumeView
from ipavolume.volume.tree import Tree

STEPS: Final = tuple(path.stem for path in sorted((PROJECT / "upgrade_steps").glob("s*.py")))
UNITS: Final = "etc/systemd/system"
TARGET: Final = "/usr/lib/systemd/system/container-ipa.target"
ADDRESS: Final = "ipa-server-update-self-ip-address.service"
INSTANCE: Final = "etc/dirsrv/slapd-EXAMPLE-TEST"

# Lines as 389-ds writes them: folded at 78 characters, an entry with a blank before its end.
DSE: Final = """\
dn:
objectClass: top
aci: (targetattr != "aci")(version 3.0; aci "rootdse anon read access"; allow(
 read,search,compare) userdn="ldap:///anyone";)

dn: cn=config
cn: config
objectClass: top
objectClass: extensibleObject
objectClass: nsslapdConfig
nsslapd-backendconfig: cn=config,cn=userRoot,cn=ldbm database,cn=plugins,cn=co
 nfig
nsslapd-localhost: ipa.example.test
{config}nsslapd-rootdn: cn=Directory Manager
nsslapd-errorlog: /var/log/dirsrv/slapd-EXAMPLE-TEST/errors

dn: cn=Schema Compatibility,cn=plugins,cn=config
cn: Schema Compatibility
nsslapd-pluginPath: /usr/lib64/dirsrv/plugins/schemacompat-plugin.so
nsslapd-pluginEnabled: {compat}

dn: cn=config,cn=ldbm database,cn=plugins,cn=config
cn: config
{backend}nsslapd-directory: /var/lib/dirsrv/slapd-EXAMPLE-TEST/db

dn: cn=userRoot,cn=ldbm database,cn=plugins,cn=config
objectClass: nsBackendInstance
cn: userRoot
nsslapd-suffix: dc=example,dc=test

dn: cn=encryption,cn=config
cn: encryption
nsSSLClientAuth: allowed
"""
OPEN: Final = "nsslapd-port: 389\nnsslapd-security: on\n"
CLOSED: Final = "nsslapd-port: 0\nnsslapd-security: off\nnsslapd-global-backend-lock: on\n"
SYSRESTORE: Final = """\
[dirsrv]
running = None
enabled = False
{notes}
[ntpd]
enabled = False

"""
NOTES: Final = "nsslapd-port = 389\nnsslapd-security = on\nschema_compat_enabled = on\n"
SYSUPGRADE: Final = """\
[ipa]
data_version = 4.12.2-1.fc42
{platform}
[dns]
regular_named_conf = True
platform = not about this

"""
PKI: Final = """\
# Where your java installation lives
JAVA_HOME="/usr/lib/jvm/jre-1.8.0-openjdk"

# You can pass some parameters to java here if you wish to
JAVA_OPTS="-DRESTEASY_LIB={resteasy}  -Djava.library.path=/usr/lib64/nuxwdog-jni"
#JAVA_OPTS was: -DRESTEASY_LIB=/usr/share/java/resteasy-base
TOMCAT_USER="pkiuser"
"""


def dse(config: str = OPEN, *, compat: str = "on", backend: str = "mdb") -> str:
    """Return a dse.ldif."""
    implement = f"nsslapd-backend-implement: {backend}\n" if backend else ""
    return DSE.format(config=config, compat=compat, backend=implement)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """An image of FreeIPA on Fedora 43, and an empty volume."""
    scene = Scene(
        top=tmp_path,
        lists={
            "/data": (
                *("/etc/dirsrv", "/etc/ipa", "/etc/machine-id", "/etc/sysconfig"),
                *("/etc/systemd/system", "/var/lib/dirsrv", "/var/lib/ipa"),
                *("/var/lib/sss/db", "/var/lib/sss/mc", "/var/lib/sss/pubconf"),
                "/var/lib/systemd",
            )
        },
        packages=(
            package("systemd", "258-1.fc43"),
            package("sssd-common", "2.11.1-1.fc43"),
            package("freeipa-server", "4.13.0-1.fc43"),
            package("389-ds-base", "3.1.3-1.fc43"),
            package("dogtag-pki-server", "11.7.0-1.fc43", "pki-server"),
        ),
        recorded=(package("freeipa-server", "4.12.2-1.fc42"),),
    )
    for path in (
        TARGET,
        "/usr/lib64/dirsrv/plugins/libback-ldbm.so",
        "/usr/share/java/resteasy/resteasy-core.jar",
        "/usr/lib/systemd/system/ipavolume-online.service",
        "/usr/lib/systemd/system/ipa-ccache-sweep.timer",
    ):
        file = scene.image / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n")
    conf = scene.image / "usr/lib/systemd/system.conf.d/ipaplatform-override.conf"
    conf.parent.mkdir()
    conf.write_text(
        "# see systemd-system.conf(5)\n[Manager]\n"
        'DefaultEnvironment="IPAPLATFORM_OVERRIDE=fedora_container"\n'
    )
    ship(scene.image)
    return scene


def make_freeipa(scene: Scene) -> None:
    """Fill the volume as an old server left it: everything that a step is about is there."""
    link, put = scene.link, scene.put
    for name, unit in (
        ("ipa-server-configure-first.service", "ipa-server-configure-first.service"),
        ("ipa-server-upgrade.service", "ipa-server-upgrade.service"),
        ("certmonger.service", "certmonger.service"),
        ("dirsrv@EXAMPLE-TEST.service", "dirsrv@.service"),
    ):
        link(f"{UNITS}/multi-user.target.wants/{name}", f"/usr/lib/systemd/system/{unit}")
    put(f"{UNITS}/multi-user.target.wants/own.service", "[Service]\nExecStart=/bin/true\n")
    link(f"{UNITS}/default.target", "/lib/systemd/system/multi-user.target")
    link(
        f"{UNITS}/container-ipa.target.wants/ipa-server-update-self-ip-address.service",
        "/usr/lib/systemd/system/ipa-server-update-self-ip-address.service",
    )
    put("etc/machine-id", "")
    put("var/lib/systemd/catalog/database", "of the first image\n")
    scene.ship("var/lib/systemd/catalog/database", "of this image\n")
    put(f"{INSTANCE}/dse.ldif", dse(CLOSED, compat="off", backend="bdb"), mode=0o600)
    put(f"{INSTANCE}/dse.ldif.ipa.0123456789abcdef", dse(), mode=0o600)
    for name in ("DBVERSION", "guardian", "userRoot/id2entry.db", "userRoot/DBVERSION"):
        put(f"var/lib/dirsrv/slapd-EXAMPLE-TEST/db/{name}", "bdb/5.3/libback-ldbm/newidl\n")
    for name in ("db/cache_example.test.ldb", "db/config.ldb", "mc/passwd", "mc/initgroups"):
        put(f"var/lib/sss/{name}", os.urandom(64))
    (scene.volume() / "var/lib/sss/db/directory").mkdir()
    for name in ("kdcinfo.EXAMPLE.TEST", "kpasswdinfo.EXAMPLE.TEST", "krb5.include.d/enable"):
        put(f"var/lib/sss/pubconf/{name}", "192.0.2.7\n")
    put("etc/sysconfig/pki-tomcat", PKI.format(resteasy="/usr/share/java/resteasy-base"))
    put("var/lib/ipa/sysupgrade/sysupgrade.state", SYSUPGRADE.format(platform="platform = rhel\n"))
    put("var/lib/ipa/sysrestore/sysrestore.state", SYSRESTORE.format(notes=NOTES))
    put("etc/ipa/ca.crt", "-----BEGIN CERTIFICATE-----\n")


def make_image_for(scene: Scene, name: str) -> None:
    """Give the image what decides whether *name* has something to do on that volume."""
    if name.startswith("s0210"):
        # A server that can only read Berkeley databases.
        (scene.image / "usr/lib64/dirsrv/librobdb.so").write_text("x")


def make_other(scene: Scene) -> None:
    """Fill the volume as another application leaves it, with names that look like FreeIPA's."""
    for path in ("etc/sysconfig/app", "var/lib/app/data", "etc/ipa/other.conf", "etc/machine-id"):
        scene.put(path, f"{'ab' * 16}\n")
    scene.link(f"{UNITS}/multi-user.target", "/usr/lib/systemd/system/multi-user.target")


def step_of(scene: Scene, name: str) -> Step:
    """Load one of the shipped steps by its number."""
    (full,) = (found for found in STEPS if found.startswith(name))
    return loaded(scene.image, full)


def look(scene: Scene) -> dict[str, tuple[object, ...]]:
    """Return what is on the volume but for our own directory; a machine id is any."""
    seen = picture(scene.volume(), times=False, leave_out=lambda path: path == "/.ipavolume")
    found = seen.get("/etc/machine-id")
    if found is not None and found[3] == 33:
        seen["/etc/machine-id"] = (*found[:4], "an id", *found[5:])
    return seen


def effects(actions: tuple[StepAction, ...]) -> list[StepAction]:
    """Return the actions that are not commands, which run at least once."""
    return [action for action in actions if not isinstance(action, Command)]


# -- the contract ------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_step_done_twice_or_begun_and_done_again_is_done_once(scene: Scene, name: str) -> None:
    make_freeipa(scene)
    make_image_for(scene, name)
    step = loaded(scene.image, name)
    actions = scene.plan(step)
    assert actions, "the volume is one that the step is for"
    before = scene.top / "before"
    shutil.copytree(scene.volume(), before, symlinks=True)
    scene.perform(*actions)
    done = look(scene)
    refused = [action for action in actions if isinstance(action, Refuse)]
    again = scene.plan(step)
    assert effects(again) == refused
    # A command is run again, unless what it did is seen on the volume.
    assert [action for action in again if isinstance(action, Command)] in (
        [],
        [action for action in actions if isinstance(action, Command)],
    )
    assert scene.perform(*again) == []
    files = file_actions(actions)
    for count in range(len(files)):
        shutil.rmtree(scene.volume())
        shutil.copytree(before, scene.volume(), symlinks=True)
        scene.perform(*files[:count])
        rest = scene.plan(step)
        assert effects(rest) or count == len(files)
        scene.perform(*rest)
        assert look(scene) == done, f"begun with {count} actions"


@pytest.mark.parametrize("name", STEPS)
def test_a_dry_run_knows_what_a_step_leaves(scene: Scene, name: str) -> None:
    make_freeipa(scene)
    make_image_for(scene, name)
    step = loaded(scene.image, name)
    with scene.views() as (volume, template):
        actions = tuple(step.plan(volume, template))
        foreseen = tuple(step.plan(volume.after(actions), template))
    scene.perform(*actions)
    assert foreseen == scene.plan(step)


@pytest.mark.parametrize("make", [make_other, lambda _: None], ids=["another", "empty"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_nothing_on_a_volume_that_it_is_not_about(
    scene: Scene, name: str, make: Callable[[Scene], None]
) -> None:
    make(scene)
    assert scene.plan(loaded(scene.image, name)) == ()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_not_asked_on_a_volume_without_its_component(scene: Scene, name: str) -> None:
    step = steps_in(scene.image)[name]
    for when in When:
        assert not applies(step, when=when, recorded=lambda _: None, known=True)[0]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_tells_its_users_what_it_prevents_and_where_that_is_known_from(name: str) -> None:
    text = (PROJECT / f"upgrade_steps/{name}.py").read_text()
    assert "\nSymptom: " in text
    assert "\nSource: " in text


_ASK: Final = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from support.steps import Scene, loaded, package

class Door:
    # A view that is the only way out: while it is being asked, the hook looks away.
    def __init__(self, view):
        self._view = view
    def __getattr__(self, name):
        found = getattr(self._view, name)
        if not callable(found):
            return found
        def ask(*args):
            global watching
            watching = False
            try:
                return found(*args)
            finally:
                watching = True
        return ask

watching = False
seen = []
HARMLESS = ("object.__getattr__", "sys._getframe", "code.__new__", "gc.", "builtins.id")

def watch(event, args):
    if watching and not event.startswith(HARMLESS):
        seen.append(f"{event}{args!r}"[:300])

top, name = Path(sys.argv[3]), sys.argv[4]
scene = Scene(top=top, lists={"/data": sys.argv[5].split()}, packages=(package("x"),))
step = loaded(scene.image, name)
with scene.views() as (volume, template):
    doors = Door(volume), Door(template)
    # Once before: the first value of a class compiles how it is made.
    tuple(step.plan(*doors))
    sys.addaudithook(watch)
    watching = True
    actions = tuple(step.plan(*doors))
    watching = False
print(len(actions), *seen, sep="\\n")
"""


def ask_watched(scene: Scene, name: str) -> list[str]:
    """Let a step plan in a process of its own; return what it did beside asking its views."""
    (entries,) = scene.lists.values()
    done = subprocess.run(
        [
            *(sys.executable, "-c", _ASK, str(PROJECT / "tests"), str(PROJECT)),
            *(str(scene.top), name, " ".join(entries)),
        ],
        capture_output=True,
        check=False,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    count, *seen = done.stdout.splitlines()
    assert int(count) > 0
    return seen


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reads_only_through_its_views(scene: Scene, name: str) -> None:
    make_freeipa(scene)
    make_image_for(scene, name)
    assert ask_watched(scene, name) == []


@pytest.mark.parametrize(
    ("expression", "event"),
    [
        ("uuid.os.listdir('/')", "os.listdir"),
        ("uuid.os.open('/etc/passwd', 0)", "open"),
        ("uuid.os.system('true')", "os.system"),
        ("uuid.os.posix_spawn('/bin/true', ['true'], {})", "os.posix_spawn"),
    ],
)
def test_a_step_that_went_another_way_would_be_found_out(
    scene: Scene, expression: str, event: str
) -> None:
    path = scene.image / "usr/share/ipavolume/upgrade_steps/s0120_machine_id.py"
    text = path.read_text()
    path.write_text(text.replace("    del template\n", f"    {expression}\n"))
    make_freeipa(scene)
    assert [found for found in ask_watched(scene, "s0120_machine_id") if found.startswith(event)]


# -- unit links --------------------------------------------------------------------------


def links(scene: Scene, directory: str) -> dict[str, str]:
    """Return the links in a directory of units."""
    return {
        path.name: os.readlink(path)
        for path in (scene.volume() / UNITS / directory).iterdir()
        if path.is_symlink()
    }


def test_unit_links_of_volume_1_0_are_where_the_images_target_looks_for_them(
    scene: Scene,
) -> None:
    make_freeipa(scene)
    admins = scene.link(f"{UNITS}/container-ipa.target.wants/certmonger.service", "/mine")
    scene.perform(*scene.plan(step_of(scene, "s0100")))
    units = scene.volume() / UNITS
    assert os.readlink(units / "default.target") == TARGET
    new = "/etc/systemd/system/container-ipa.target.wants"
    assert os.readlink(units / "multi-user.target.wants") == new
    assert links(scene, "container-ipa.target.wants") == {
        "certmonger.service": "/mine",
        "dirsrv@EXAMPLE-TEST.service": "/usr/lib/systemd/system/dirsrv@.service",
        "ipa-server-configure-first.service": (
            "/usr/lib/systemd/system/ipa-server-configure-first.service"
        ),
        "ipa-server-update-self-ip-address.service": (
            "/usr/lib/systemd/system/ipa-server-update-self-ip-address.service"
        ),
        "ipa-server-upgrade.service": "/usr/lib/systemd/system/ipa-server-upgrade.service",
    }
    assert admins.is_symlink()
    assert (units / "container-ipa.target.wants/own.service").read_text().startswith("[Service]")


def test_what_is_neither_link_nor_file_stays_in_the_old_directory_and_is_told(
    scene: Scene,
) -> None:
    make_freeipa(scene)
    odd = scene.volume() / UNITS / "multi-user.target.wants/odd"
    odd.mkdir()
    actions = scene.plan(step_of(scene, "s0100"))
    assert [action.code for action in actions if isinstance(action, Warn)] == ["unit-links-left"]
    scene.perform(*actions)
    assert [path.name for path in odd.parent.iterdir()] == ["odd"]


def test_a_volume_without_the_new_directory_keeps_its_unit_links(scene: Scene) -> None:
    make_freeipa(scene)
    shutil.rmtree(scene.volume() / UNITS / "container-ipa.target.wants")
    (action,) = scene.plan(step_of(scene, "s0100"))
    assert isinstance(action, Warn)
    assert action.code == "no-container-target"


@pytest.mark.parametrize("image_has", ["neither", "both"])
def test_links_to_units_of_old_images_go_when_the_image_has_none_or_does_it_otherwise(
    scene: Scene, image_has: str
) -> None:
    make_freeipa(scene)
    if image_has == "both":
        for name in ("ipa-server-upgrade", "ipa-server-update-self-ip-address"):
            (scene.image / f"usr/lib/systemd/system/{name}.service").write_text("[Service]\n")
    scene.perform(*scene.plan(step_of(scene, "s0110")))
    assert set(links(scene, "multi-user.target.wants")) == {
        *("certmonger.service", "dirsrv@EXAMPLE-TEST.service"),
    }
    left = {"ipa-server-update-self-ip-address.service"} if image_has == "both" else set()
    assert set(links(scene, "container-ipa.target.wants")) == left


def test_who_had_the_update_of_the_address_disabled_is_heeded(scene: Scene) -> None:
    """Their README has it disabled, where the server is behind another address."""
    make_freeipa(scene)
    (scene.volume() / UNITS / "container-ipa.target.wants" / ADDRESS).unlink()
    step = step_of(scene, "s0110")
    scene.perform(*scene.plan(step))
    assert os.readlink(scene.volume() / UNITS / ADDRESS) == "/dev/null"
    assert scene.plan(step) == scene.plan(step_of(scene, "s0430")) == ()


def test_links_to_units_of_old_images_stay_where_nothing_else_does_their_work(
    scene: Scene,
) -> None:
    make_freeipa(scene)
    units = scene.image / "usr/lib/systemd/system"
    (units / "ipavolume-online.service").unlink()
    for name in ("configure-first", "upgrade", "update-self-ip-address"):
        (units / f"ipa-server-{name}.service").write_text("[Service]\n")
    assert scene.plan(step_of(scene, "s0110")) == ()


ADDRESS_UNIT: Final = """\
[Unit]
Description=Update self IP address of the IPA server
{requires}After=ipa.service
After=ipa-server-upgrade.service

[Service]
Type=oneshot
ExecStart=/usr/sbin/ipa-server-configure-first update-self-ip-address
"""


def test_the_unit_that_updates_the_address_no_longer_starts_the_old_upgrade(scene: Scene) -> None:
    make_freeipa(scene)
    unit = scene.image / "usr/lib/systemd/system" / ADDRESS
    unit.write_text(ADDRESS_UNIT.format(requires="Requires=ipa-server-upgrade.service\n"))
    (unit.parent / "ipa-server-upgrade.service").write_text("[Service]\n")
    step = step_of(scene, "s0110")
    scene.perform(*scene.plan(step))
    assert set(links(scene, "container-ipa.target.wants")) == {ADDRESS}
    copy = scene.volume() / UNITS / ADDRESS
    assert copy.read_text().endswith(ADDRESS_UNIT.format(requires=""))
    assert scene.plan(step) == ()
    # A later image has another unit, and one after it none.
    unit.write_text(unit.read_text().replace("oneshot", "exec"))
    scene.perform(*scene.plan(step))
    assert "Type=exec" in copy.read_text()
    unit.unlink()
    scene.perform(*scene.plan(step))
    assert not copy.exists()
    assert links(scene, "container-ipa.target.wants") == {}


@pytest.mark.parametrize("own", ["[Service]\nExecStart=/mine\n", None])
def test_an_administrators_own_unit_that_updates_the_address_stays(
    scene: Scene, own: str | None
) -> None:
    make_freeipa(scene)
    unit = scene.image / "usr/lib/systemd/system" / ADDRESS
    unit.write_text(ADDRESS_UNIT.format(requires="Requires=ipa-server-upgrade.service\n"))
    if own is None:
        path = scene.link(f"{UNITS}/{ADDRESS}", "/dev/null")
    else:
        path = scene.put(f"{UNITS}/{ADDRESS}", own)
    scene.perform(*scene.plan(step_of(scene, "s0110")))
    assert (path.read_text() if own else os.readlink(path)) == (own or "/dev/null")


def test_a_link_that_the_image_itself_ships_stays(scene: Scene) -> None:
    make_freeipa(scene)
    name = "multi-user.target.wants/ipa-server-configure-first.service"
    link = scene.image / "data-template" / UNITS / name
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/ipa-server-configure-first.service")
    scene.perform(*scene.plan(step_of(scene, "s0110")))
    assert (scene.volume() / UNITS / name).is_symlink()


# -- machine id --------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "\n", "uninitialized\n", "0" * 32 + "\n"])
def test_a_volume_without_a_machine_id_is_given_its_own(scene: Scene, content: str | None) -> None:
    path = scene.volume() / "etc/machine-id"
    path.parent.mkdir()
    seen = set()
    for _ in range(2):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        scene.perform(*scene.plan(step_of(scene, "s0120")))
        text = path.read_text()
        assert len(text) == 33
        assert set(text[:32]) <= set("0123456789abcdef")
        assert text[32] == "\n"
        assert not scene.saved("etc/machine-id").exists()
        seen.add(text)
    assert len(seen) == 2


def test_a_new_machine_id_can_be_read_by_all_and_written_by_nobody(scene: Scene) -> None:
    (scene.volume() / "etc").mkdir()
    scene.perform(*scene.plan(step_of(scene, "s0120")))
    assert (scene.volume() / "etc/machine-id").stat().st_mode & 0o7777 == 0o444


def test_a_machine_id_that_is_not_kept_on_the_volume_is_none_of_ours(tmp_path: Path) -> None:
    scene = Scene(top=tmp_path, lists={"/data": ("/etc/app",)})
    scene.put("etc/app/conf")
    ship(scene.image)
    assert scene.plan(step_of(scene, "s0120")) == ()


def test_a_link_in_the_place_of_the_machine_id_stays(scene: Scene) -> None:
    scene.link("etc/machine-id", "/run/machine-id")
    assert scene.plan(step_of(scene, "s0120")) == ()


# -- the directory server's database ------------------------------------------------------


@pytest.mark.parametrize("said_by", ["dse.ldif", "DBVERSION"])
def test_a_bdb_database_is_refused_by_an_image_that_cannot_open_it(
    scene: Scene, said_by: str
) -> None:
    scene.put(f"{INSTANCE}/dse.ldif", dse(backend="bdb" if said_by == "dse.ldif" else ""))
    if said_by == "DBVERSION":
        scene.put("var/lib/dirsrv/slapd-EXAMPLE-TEST/db/DBVERSION", "bdb/5.3/libback-ldbm/newidl\n")
    (action,) = scene.plan(step_of(scene, "s0200"))
    assert isinstance(action, Refuse)
    assert action.code == "no-bdb"
    assert "EXAMPLE-TEST" in action.text
    assert "3.1.3-1.fc43" in action.text
    assert "dsctl EXAMPLE-TEST dblib bdb2mdb" in action.hint


@pytest.mark.parametrize(
    ("library", "content"),
    [
        ("usr/lib64/dirsrv/plugins/libback-bdb.so", "x"),
        ("usr/lib64/dirsrv/plugins/libback-ldbm.so", "\x7fELF\0libdb-5.3.so\0"),
        ("usr/lib/x86_64-linux-gnu/dirsrv/plugins/libback-ldbm.so", "\x7fELF\0libdb-5.3.so\0"),
        ("usr/lib64/dirsrv/librobdb.so", "x"),
    ],
)
def test_a_bdb_database_is_not_refused_by_an_image_that_still_has_it_or_converts_it(
    scene: Scene, library: str, content: str
) -> None:
    scene.put(f"{INSTANCE}/dse.ldif", dse(backend="bdb"))
    file = scene.image / library
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    assert scene.plan(step_of(scene, "s0200")) == ()


def test_a_libdb_that_others_use_does_not_open_a_bdb_database(scene: Scene) -> None:
    scene.put(f"{INSTANCE}/dse.ldif", dse(backend="bdb"))
    (scene.image / "usr/lib64/libdb-5.3.so").write_text("x")
    assert isinstance(scene.plan(step_of(scene, "s0200"))[0], Refuse)


@pytest.mark.parametrize("backend", ["mdb", ""])
def test_another_database_is_not_refused(scene: Scene, backend: str) -> None:
    scene.put(f"{INSTANCE}/dse.ldif", dse(backend=backend))
    scene.put("etc/dirsrv/slapd-OTHER.removed/dse.ldif", dse(backend="bdb"))
    assert scene.plan(step_of(scene, "s0200")) == ()


# -- caches ------------------------------------------------------------------------------


def below(scene: Scene, path: str) -> set[str]:
    """Return the names in a directory of the volume."""
    return {found.name for found in (scene.volume() / path).iterdir()}


def test_the_caches_of_sssd_go_and_nothing_is_kept_of_them(scene: Scene) -> None:
    make_freeipa(scene)
    scene.link("var/lib/sss/db/link", "/etc/passwd")
    assert scene.perform(*scene.plan(step_of(scene, "s0300"))) == [None] * 4
    assert below(scene, "var/lib/sss/db") == {"directory", "link"}
    assert below(scene, "var/lib/sss/mc") == set()
    assert below(scene, "var/lib/sss/pubconf") != set()


def test_the_caches_of_the_same_sssd_stay(scene: Scene) -> None:
    make_freeipa(scene)
    scene.recorded = (*scene.recorded, package("sssd-common", "2.11.1-1.fc43"))
    assert scene.plan(step_of(scene, "s0300")) == ()
    scene.recorded = (package("sssd-common", "2.11.0-1.fc43"),)
    assert len(scene.plan(step_of(scene, "s0300"))) == 4


def test_noted_addresses_of_kdcs_go_at_every_start(scene: Scene) -> None:
    make_freeipa(scene)
    assert steps_in(scene.image)["s0310_kdcinfo"].when == (When.START,)
    scene.perform(*scene.plan(step_of(scene, "s0310")))
    assert below(scene, "var/lib/sss/pubconf") == {"krb5.include.d"}


# -- files of the certificate authority and of FreeIPA ------------------------------------


@pytest.mark.parametrize(
    ("image_has", "before", "after"),
    [
        (("resteasy",), "resteasy-base", "resteasy"),
        (("resteasy-base",), "resteasy", "resteasy-base"),
        (("resteasy", "resteasy-core"), "resteasy-base", "resteasy"),
        (("resteasy", "resteasy-core"), "resteasy-core", "resteasy-core"),
        (("resteasy",), "resteasy", "resteasy"),
        ((), "resteasy-base", "resteasy-base"),
    ],
)
def test_pki_tomcat_is_led_to_the_resteasy_of_the_image(
    scene: Scene, image_has: tuple[str, ...], before: str, after: str
) -> None:
    java = scene.image / "usr/share/java"
    shutil.rmtree(java)
    for name in image_has:
        (java / name).mkdir(parents=True)
    file = scene.put(
        "etc/sysconfig/pki-tomcat", PKI.format(resteasy=f"/usr/share/java/{before}"), mode=0o640
    )
    os.chown(file, 17, 17)
    scene.perform(*scene.plan(step_of(scene, "s0400")))
    assert file.read_text() == PKI.format(resteasy=f"/usr/share/java/{after}")
    st = file.stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (17, 17, 0o640)
    assert not scene.saved("etc/sysconfig/pki-tomcat").exists()


@pytest.mark.parametrize(
    ("platform", "after"),
    [
        ("platform = rhel\n", ""),
        ("platform = rhel_container\n", ""),
        # FreeIPA notes and compares it without the ending, in a container, too (F66).
        ("platform = fedora\n", "platform = fedora\n"),
        ("platform=fedora\n", "platform=fedora\n"),
        ("platform = fedora_container\n", ""),
        ("", ""),
    ],
)
def test_another_platform_is_forgotten_for_freeipa_to_note_its_own(
    scene: Scene, platform: str, after: str
) -> None:
    file = scene.put(
        "var/lib/ipa/sysupgrade/sysupgrade.state", SYSUPGRADE.format(platform=platform)
    )
    actions = scene.plan(step_of(scene, "s0410"))
    scene.perform(*actions)
    assert file.read_text() == SYSUPGRADE.format(platform=after)
    # Put back after the upgrade, it would be refused again.
    assert not scene.saved("var/lib/ipa/sysupgrade/sysupgrade.state").exists()
    if platform != after:
        (action,) = actions
        assert isinstance(action, Write)
        assert "the image is 'fedora'" in action.reason


def test_an_image_without_an_override_is_of_the_platform_of_its_release(scene: Scene) -> None:
    (scene.image / "usr/lib/systemd/system.conf.d/ipaplatform-override.conf").unlink()
    scene.put(
        "var/lib/ipa/sysupgrade/sysupgrade.state",
        SYSUPGRADE.format(platform="platform = fedora\n"),
    )
    assert scene.plan(step_of(scene, "s0410")) == ()


def test_an_image_without_an_override_is_of_the_platform_its_package_was_built_for(
    scene: Scene,
) -> None:
    """A server on Rocky Linux notes "rhel": it is right, and stays (F66)."""
    (scene.image / "usr/lib/systemd/system.conf.d/ipaplatform-override.conf").unlink()
    scene.image_os = ("rocky", "9.6")
    built_for = scene.image / "usr/lib/python3.9/site-packages/ipaplatform/override.py"
    built_for.parent.mkdir(parents=True)
    built_for.write_text("OVERRIDE = 'rhel'\n")
    scene.put(
        "var/lib/ipa/sysupgrade/sysupgrade.state", SYSUPGRADE.format(platform="platform = rhel\n")
    )
    assert scene.plan(step_of(scene, "s0410")) == ()


def test_what_dogtag_does_itself_since_10_7_1_is_left_to_it(scene: Scene) -> None:
    step = steps_in(scene.image)["s0400_resteasy_of_pki_tomcat"]
    for version, asked in (("10.6.9-1.fc29", True), ("10.7.1-1.fc30", False)):
        recorded = {"pki-server": f"0:{version}"}
        assert applies(step, when=When.UPGRADE, recorded=recorded.get, known=True)[0] is asked


# -- expired credential caches ------------------------------------------------------------

TIMER: Final = "ipa-ccache-sweep.timer"


def test_the_timer_that_removes_expired_credential_caches_is_enabled(scene: Scene) -> None:
    make_freeipa(scene)
    (action,) = scene.plan(step_of(scene, "s0420"))
    assert isinstance(action, Command)
    assert action.words == ("systemctl", "enable", TIMER)
    assert action.may_fail


@pytest.mark.parametrize("why", ["enabled", "masked", "no such timer", "not installed"])
def test_the_timer_is_left_as_it_is(scene: Scene, why: str) -> None:
    make_freeipa(scene)
    match why:
        case "enabled":
            scene.link(f"{UNITS}/timers.target.wants/{TIMER}", f"/usr/lib/systemd/system/{TIMER}")
        case "masked":
            scene.link(f"{UNITS}/{TIMER}", "/dev/null")
        case "no such timer":
            (scene.image / "usr/lib/systemd/system" / TIMER).unlink()
        case _:
            (scene.volume() / "etc/ipa/ca.crt").unlink()
    assert scene.plan(step_of(scene, "s0420")) == ()


# -- ipa-server-upgrade -------------------------------------------------------------------

COPY: Final = f"{INSTANCE}/dse.ldif.ipa"
SECOND: Final = "nsslapd-port = 0\nnsslapd-security = off\nschema_compat_enabled = off\n"


@pytest.mark.parametrize(
    ("copies", "notes", "after", "compat", "warned"),
    [
        ([(OPEN, "on")], NOTES, OPEN, "on", False),
        ([(OPEN.replace("389", "1389"), "off")], NOTES, OPEN, "on", False),
        ([(OPEN, "on")], SECOND, OPEN, "on", False),
        ([(OPEN, "on"), (CLOSED, "off"), (OPEN, "on")], SECOND, OPEN, "on", False),
        ([(OPEN, "off")], SECOND, OPEN, "off", False),
        ([], NOTES, OPEN, "on", False),
        ([(CLOSED, "off")], NOTES, OPEN, "on", False),
        ([], SECOND, OPEN, "off", True),
        ([], "", OPEN, "off", True),
        ([(OPEN.replace("389", "1389"), "on")], "", OPEN.replace("389", "1389"), "on", False),
        ([(OPEN, "on"), (OPEN.replace("389", "1389"), "on")], "", OPEN, "on", True),
        ([], NOTES.replace("389", "99999"), OPEN, "off", True),
    ],
)
def test_ports_that_an_interrupted_upgrade_left_closed_are_opened_before_the_next(
    scene: Scene,
    copies: list[tuple[str, str]],
    notes: str,
    after: str,
    compat: str,
    warned: bool,  # noqa: FBT001 - a column of the table
) -> None:
    make_freeipa(scene)
    for path in (scene.volume() / INSTANCE).glob("dse.ldif.ipa.*"):
        path.unlink()
    for number, (config, enabled) in enumerate(copies):
        scene.put(f"{COPY}.{number:016x}", dse(config, compat=enabled))
    scene.put("var/lib/ipa/sysrestore/sysrestore.state", SYSRESTORE.format(notes=notes))
    actions = scene.plan(step_of(scene, "s9000"))
    scene.perform(*actions)
    file = scene.volume() / INSTANCE / "dse.ldif"
    assert file.read_text() == dse(after, compat=compat, backend="bdb")
    assert file.stat().st_mode & 0o7777 == 0o600
    warnings = [action.code for action in actions if isinstance(action, Warn)]
    assert warnings == (["listeners-guessed"] if warned else [])
    # What is to be settled afterwards has "yours comes back", which would close them again.
    assert bool(list(scene.volume().glob(".ipavolume/saved/**/dse.ldif"))) == warned
    assert isinstance(actions[-1], Command)
    assert actions[-1].words == ("ipa-server-upgrade",)


@pytest.mark.parametrize(
    "config", [OPEN, "nsslapd-port: 0\nnsslapd-security: on\n", "nsslapd-security: on\n"]
)
def test_a_directory_server_that_is_not_closed_is_left_as_it_is(scene: Scene, config: str) -> None:
    make_freeipa(scene)
    scene.put(f"{INSTANCE}/dse.ldif", dse(config))
    (action,) = scene.plan(step_of(scene, "s9000"))
    assert isinstance(action, Command)
    assert "4.12.2-1.fc42" in action.reason
    assert "4.13.0-1.fc43" in action.reason


def test_the_same_server_in_both_images_is_said(scene: Scene) -> None:
    make_freeipa(scene)
    scene.put(f"{INSTANCE}/dse.ldif", dse(OPEN))
    scene.recorded = (package("freeipa-server", "4.13.0-1.fc43"),)
    (action,) = scene.plan(step_of(scene, "s9000"))
    assert isinstance(action, Command)
    assert action.reason.startswith("the image has the same freeipa-server, 4.13.0-1.fc43")


def test_the_server_upgrade_is_the_last_step_and_runs_under_init(scene: Scene) -> None:
    steps = steps_in(scene.image)
    assert list(steps)[-1] == "s9000_ipa_server_upgrade"
    assert steps["s9000_ipa_server_upgrade"].phase == "online"


def test_a_server_that_is_not_installed_is_not_upgraded_nor_asked(scene: Scene) -> None:
    make_freeipa(scene)
    (scene.volume() / "etc/ipa/ca.crt").unlink()
    assert scene.plan(step_of(scene, "s9000")) == ()
    assert _verified(scene) == []


def test_after_the_upgrade_freeipa_itself_says_whether_its_services_run(scene: Scene) -> None:
    """F62."""
    make_freeipa(scene)
    assert _verified(scene) == [("ipactl", "status")]


AGREEMENT: Final = """\

dn: cn=meToother.example.test,cn=replica,cn=dc\\3Dexample\\2Cdc\\3Dtest,cn=mapping tree,cn=
 config
cn: meToother.example.test
objectClass: nsds5ReplicationAgreement
objectClass: top
nsDS5ReplicaHost: other.exam
 ple.test
"""


def _against_going_back(scene: Scene, before: Path) -> dict[str, Warn | Refuse]:
    step = step_of(scene, "s9000").going_back
    assert step is not None
    fd = os.open(before, os.O_RDONLY)
    try:
        with scene.volumes() as volumes:
            mounts = {mount: volume.fd for mount, volume in volumes.items()}
            with Tree(mounts) as now, Tree({"/data": fd}) as kept:
                view = RollbackVolumeView(now, kept, scene.mounts, None)
                return {found.code: found for found in step(view)}
    finally:
        os.close(fd)


def test_what_peers_have_seen_is_not_undone_and_newer_keys_are_named(
    scene: Scene, tmp_path: Path
) -> None:
    make_freeipa(scene)
    for name in ("etc/dirsrv/ds.keytab", "var/lib/ipa/certs/httpd.crt"):
        scene.put(name, "old\n")
    before = tmp_path / "before"
    shutil.copytree(scene.volume(), before, symlinks=True)
    assert _against_going_back(scene, before) == {}
    scene.put("var/lib/ipa/certs/httpd.crt", "renewed\n")
    found = _against_going_back(scene, before)
    assert list(found) == ["newer-keys"]
    assert found["newer-keys"].text.endswith(": /var/lib/ipa/certs/httpd.crt")
    scene.put(f"{INSTANCE}/dse.ldif", dse() + AGREEMENT)
    refused = _against_going_back(scene, before)["replicated"]
    assert isinstance(refused, Refuse)
    assert "replicates with other.example.test:" in refused.text
    # An upgrade that removed the agreement has told the peer before.
    scene.put(f"{INSTANCE}/dse.ldif", dse())
    (before / f"{INSTANCE}/dse.ldif").write_text(dse() + AGREEMENT.replace("\n", "\r\n"))
    assert "other.example.test" in _against_going_back(scene, before)["replicated"].text
    # What is no server of FreeIPA has none.
    (scene.volume() / "etc/ipa/ca.crt").unlink()
    assert _against_going_back(scene, before) == {}


def _verified(scene: Scene) -> list[tuple[str, ...]]:
    verify = step_of(scene, "s9000").verify
    assert verify is not None
    with scene.views() as (volume, _):
        return [command.words for command in verify(volume)]


def test_the_journals_catalogue_is_the_images(scene: Scene) -> None:
    """F36: a ghost that a scriptlet makes, which kept the first image's content for ever."""
    path = "var/lib/systemd/catalog/database"
    step = step_of(scene, "s0130")
    scene.ship(path, "two\n")
    assert scene.plan(step) == ()
    file = scene.put(path, "one\n")
    scene.perform(*scene.plan(step))
    assert file.read_text() == "two\n"
    assert not (scene.volume() / ".ipavolume/saved").exists()
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert scene.plan(step) == ()
