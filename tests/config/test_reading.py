"""The configuration: defaults, the profile, and faults with their lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from support.documents import MANUAL, blocks

from ipavolume.config import reading
from ipavolume.config.model import (
    GENERIC,
    Config,
    FirstRunConfig,
    ReadyConfig,
    ScriptletsConfig,
    Substitution,
    VolumeConfig,
)
from ipavolume.config.reading import parse_config
from ipavolume.config.tomllines import key_lines
from ipavolume.errors import ConfigurationError

DESIGN = b"""
profile = "freeipa"

[[volume]]
mount = "/data"
template = "/data-template"            # default: the mount with "-template"
lists = ["/etc/volume-data-list"]
volatile = false

[start]
exec = ["/usr/sbin/init"]
log-follow = ["/var/log/ipa-server-configure-first.log"]

[accept]
from = ["fedora:same-or-previous", "el:same-major"]
guard = ["ipa-server", "freeipa-server", "389-ds-base", "pki-server"]

[files]
refresh = []

[scriptlets]
packages = ["389-ds-base", "certmonger", "sssd-common", "?pki-server", "?pki-base", "?bind",
            "?bind-dyndb-ldap", "?ipa-client", "?freeipa-client", "?authselect-libs",
            "?ca-certificates", "?opendnssec", "?unbound", "?softhsm"]
kinds = ["post", "trigger", "posttrans"]
phase = "online"
timeout_s = 600
substitute = [{ package = "bind-dyndb-ldap", find = "/etc/named.conf",
    replace = "/data/etc/named.conf" },
    { package = "bind", find = "/etc/named.conf", replace = "/data/etc/named.conf" },
    { package = "ipa-client", find = "/etc/krb5.conf", replace = "/data/etc/krb5.conf" },
    { package = "sssd-common", find = " /etc/sssd ", replace = " /data/etc/sssd " },
    { package = "pki-server", find = "find /var/log/pki ", replace = "find /data/var/log/pki " }]

[first-run]
command = ["/usr/sbin/ipa-server-install"]
phase = "online"
done-when = "/etc/ipa/ca.crt"
waiting-when = "/data/ipa.csr"
ruins-when = "/var/lib/ipa/sysrestore/sysrestore.index"

[ready]
units = ["ipa.service", "dirsrv@*.service", "krb5kdc.service", "httpd.service"]
ports = [88, 389, 443]
command = []
timeout_s = 1
ignore = ["systemd-*"]
"""


def test_without_a_file() -> None:
    config = parse_config(None)
    assert config == GENERIC == parse_config(b"")
    assert config.volumes == (
        VolumeConfig(mount="/data", template="/data-template", lists=("/etc/volume-data-list",)),
    )
    assert (config.scriptlets, config.first_run, config.start_exec) == (None, None, ())
    assert (config.lock_lost, parse_config(b"[lock]\nlost = 'keep'").lock_lost) == ("", "keep")
    assert config.ready == ReadyConfig(ignore=("systemd-*",))
    assert config.accept_from == ()


def test_the_profile_is_what_the_design_shows() -> None:
    profile = parse_config(b'profile = "freeipa"\n')
    shown = parse_config(DESIGN.replace(b",\n    ", b", "))
    assert not profile.volumes_given
    assert shown.volumes_given
    assert profile == Config(
        **{
            name: getattr(shown, name)
            for name in Config.__dataclass_fields__
            if name != "volumes_given"
        }
    )


def test_keys_override_the_profile_one_by_one() -> None:
    config = parse_config(
        b"""profile = "freeipa"
accept.guard = ["only"]
[first-run]
command = ["/usr/sbin/ipa-replica-install", "--unattended"]
timeout_s = 7200
[scriptlets]
timeout_s = 30
"""
    )
    assert config.accept_guard == ("only",)
    assert config.accept_from == ("fedora:same-or-previous", "el:same-major")
    assert config.first_run is not None
    assert config.first_run.command == ("/usr/sbin/ipa-replica-install", "--unattended")
    assert config.first_run.done_when == "/etc/ipa/ca.crt"
    assert config.first_run.timeout_s == 7200
    assert config.scriptlets is not None
    assert config.scriptlets.timeout_s == 30
    assert "?bind" in config.scriptlets.packages


def test_without_the_profile_only_what_is_said_holds() -> None:
    config = parse_config(
        b"""[first-run]
command = ["/bin/setup"]
[scriptlets]
packages = ["a"]
substitute = [{package = "a", find = "x", replace = ""}]
repeatable = ["a"]
[files]
refresh = ["/etc/*.conf"]
[accept]
from = ["fedora>=42", "debian>=12,<14"]
"""
    )
    assert config.first_run == FirstRunConfig(command=("/bin/setup",))
    assert config.scriptlets == ScriptletsConfig(
        packages=("a",),
        substitute=(Substitution(package="a", find="x", replace=""),),
        repeatable=("a",),
    )
    assert config.files_refresh == ("/etc/*.conf",)
    assert config.accept_from == ("fedora>=42", "debian>=12,<14")


def test_no_guard_is_another_thing_than_nothing_said_of_it() -> None:
    """F13: ``[]`` could not switch it off."""
    assert parse_config(b"").accept_guard is None
    assert parse_config(b"[accept]\nguard = []\n").accept_guard == ()
    assert parse_config(b'profile = "freeipa"\n[accept]\nguard = []\n').accept_guard == ()


def test_switching_parts_of_the_profile_off() -> None:
    config = parse_config(
        b'profile = "freeipa"\n[scriptlets]\npackages = []\n[first-run]\ncommand = []\n'
        b"[ready]\nports = []\n"
    )
    assert (config.scriptlets, config.first_run) == (None, None)
    assert config.ready.ports == ()
    assert "ipa.service" in config.ready.units


def test_defaults_of_a_volume() -> None:
    config = parse_config(
        b'[[volume]]\nmount = "/data/"\n[[volume]]\nmount = "/tmp"\nvolatile = true\n'
    )
    assert config.volumes[1] == VolumeConfig(
        mount="/tmp", template="/tmp-template", lists=("/etc/volume-tmp-list",), volatile=True
    )
    assert config.volumes[0].mount == "/data"


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        pytest.param('profile = "other"', 1, "none of freeipa", id="unknown profile"),
        pytest.param("profile = 1", 1, "must be a string", id="number for a string"),
        pytest.param("\nvolumes = []", 2, "not a known key", id="unknown key"),
        pytest.param("[starts]\nexec = []", 1, "not a known key", id="unknown table"),
        pytest.param("[start]\nexe = []", 2, "start.exe is not a known", id="unknown key below"),
        pytest.param("volume = 1", 1, "array of tables", id="volume is no table"),
        pytest.param("[volume]\nmount = '/x'", 1, "array of tables", id="one table"),
        pytest.param("[[volume]]\nlists = []", 1, "has no mount", id="no mount"),
        pytest.param("[[volume]]\nmount = 'x'", 2, "not an absolute", id="relative mount"),
        pytest.param("[[volume]]\nmount = '/'", 2, "root of the image", id="root"),
        pytest.param("[[volume]]\nmount = '/proc/x'", 2, "needs itself", id="proc"),
        pytest.param("[[volume]]\nmount = '/usr'", 2, "needs itself", id="above ours"),
        pytest.param(
            "[[volume]]\nmount = '/a'\ntemplate = '/a/t'", 3, "in one another", id="own template"
        ),
        pytest.param(
            "[[volume]]\nmount = '/a'\n[[volume]]\nmount = '/a'", 4, "already", id="twice"
        ),
        pytest.param(
            "[[volume]]\nmount = '/a'\n[[volume]]\nmount = '/a/b'", 4, "in one another", id="nested"
        ),
        pytest.param(
            "[[volume]]\nmount = '/a'\n[[volume]]\nmount = '/b'\ntemplate = '/a-template/x'",
            5,
            "in one another",
            id="template in a template",
        ),
        pytest.param("[[volume]]\nmount = '/a'\nvolatile = 1", 3, "true or false", id="volatile"),
        pytest.param("[[volume]]\nmount = '/a'\nvolatile = true", 3, "first", id="all volatile"),
        pytest.param("[[volume]]\nmount = '/a'\nrefill = true", 3, "first", id="refilled data"),
        pytest.param(
            "[[volume]]\nmount = '/a'\n[[volume]]\nmount = '/b'\nrefill = true\nvolatile = true",
            5,
            "at each start",
            id="refilled and emptied",
        ),
        pytest.param("[[volume]]\nmount = '/a'\nlists = 'x'", 3, "array of strings", id="lists"),
        pytest.param("[[volume]]\nmount = '/a'\nlists = ['x']", 3, "absolute", id="list"),
        pytest.param("[[volume]]\nmount = '/a'\nlists = [\n1]", 3, "array of", id="list of ints"),
        pytest.param("[accept]\nfrom = ['fedora:newer']", 2, "accept.from", id="accept rule"),
        pytest.param("[accept]\nfrom = ['el']", 2, "accept.from", id="half an accept rule"),
        pytest.param("[scriptlets]\ntimeout_s = 0", 2, "a whole number", id="no time"),
        pytest.param("[scriptlets]\ntimeout_s = true", 2, "whole number", id="true is no number"),
        pytest.param("[scriptlets]\nkinds = ['pots']", 2, "none of", id="unknown kind"),
        pytest.param("[scriptlets]\nkinds = ['pre']", 2, "comes before", id="kind before files"),
        pytest.param(
            "[scriptlets]\nkinds = ['postun']", 2, "replaced or erased", id="kind of the old"
        ),
        pytest.param("[scriptlets]\npackages = ['?']", 2, "an empty", id="no name"),
        pytest.param("[scriptlets]\nrepeatable = 1", 2, "array", id="number for names"),
        pytest.param("[scriptlets]\nphase = 'later'", 2, "none of", id="unknown phase"),
        pytest.param("[scriptlets]\nsubstitute = [{}]", 2, "has no find", id="substitution"),
        pytest.param("[first-run]\nphase = 'online'", 1, "has no command", id="no command"),
        pytest.param(
            "[first-run]\ncommand=['x']\ndone-when='y'", 3, "absolute", id="relative condition"
        ),
        pytest.param("[lock]\nlost = 'stop'", 2, "none of end, keep", id="lock lost and what"),
        pytest.param("[ready]\nunits = ['app']", 2, "neither a unit", id="no unit"),
        pytest.param("[ready]\nunits = ['-a.service']", 2, "neither a unit", id="an option"),
        pytest.param("[ready]\nports = 389", 2, "whole numbers from 1", id="one port"),
        pytest.param("[ready]\nports = ['udp/88']", 2, "TCP ports", id="port of another kind"),
        pytest.param("[ready]\n\nports = [65536]", 3, "to 65535", id="port too high"),
        pytest.param("[ready]\nports = [true]", 2, "whole numbers", id="true is no port"),
        pytest.param("[ready]\ncommand = ['']", 2, "an empty", id="no command to ask"),
        pytest.param("[ready]\ntimeout_s = 0.5", 2, "whole number", id="part of a second"),
        pytest.param("[ready]\nunit = []", 2, "ready.unit is not a known", id="unknown of ready"),
        pytest.param("[files]\nrefresh = ['*.conf']", 2, "absolute", id="relative glob"),
        pytest.param('[start]\nexec = ["a\\u0000b"]', 2, "NUL", id="NUL"),
        pytest.param("[start\n", 1, "line 1", id="no TOML"),
        pytest.param("a = 1\na = 2", 2, "", id="a key twice"),
    ],
)
def test_faults_name_their_line(text: str, line: int, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text.encode())
    message = str(caught.value)
    assert re.search(rf"ipavolume\.toml:{line}: |line {line}[, ]", message), message
    assert fault in message
    assert caught.value.exit_status == 78
    assert caught.value.hint


def test_all_faults_at_once_in_the_order_of_lines() -> None:
    text = b"""nope = 1
[[volume]]
mount = "a"
[start]
exec = 1
log-follow = [
  "/fine",
  "relative"
]
[accept]
from = ["bad"]
"""
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text)
    lines = re.findall(r"ipavolume\.toml:(\d+):", str(caught.value))
    assert lines == ["1", "3", "5", "6", "11"]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("[accept]", "guard"),
        ("[files]", "refresh"),
        ("[scriptlets]", "packages"),
        ("[scriptlets]", "repeatable"),
        ("[ready]", "ignore"),
        ("[ready]", "units"),
        ('[[volume]]\nmount = "/data"', "seed"),
        ('[[package]]\nname = "x"\nversion = "1"', "config"),
    ],
)
def test_a_glob_is_no_longer_than_a_path(table: str, key: str) -> None:
    """To make a pattern of 20,000 brackets takes eleven seconds (words 14)."""
    first, last = ("[", ".service") if key == "units" else ("/", "")

    def text(brackets: int) -> bytes:
        return f'{table}\n{key} = ["{first}{"[" * brackets}{last}"]\n'.encode()

    parse_config(text(4000))
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text(20_000))
    assert key in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x = [" * 3000, b"\0"])
def test_what_is_not_toml_at_all(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_config(data)


def test_the_lines_of_keys() -> None:
    text = '''# comment
a = """
b = 1
[not.a.table]
"""
"quoted key" = 'x # no comment'
c . d = [ # ]
  "]", { x = 1 },

]
[t."u.v"]
e = { f = 1 }
[[r]]
[[r]]
g = \'\'\'
h = 1\'\'\'
i = "\\"#"
[r.s]
j = 1
'''
    lines = key_lines(text)
    assert lines == {
        ("a",): 2,
        ("quoted key",): 6,
        ("c",): 7,
        ("c", "d"): 7,
        ("t", "u.v"): 11,
        ("t", "u.v", "e"): 12,
        ("r", 0): 13,
        ("r", 1): 14,
        ("r", 1, "g"): 15,
        ("r", 1, "i"): 17,
        ("r", 1, "s"): 18,
        ("r", 1, "s", "j"): 19,
    }


# -- the manual --------------------------------------------------------------------------

EVERY_TABLE = b"""
[[volume]]
mount = "/data"
[[package]]
name = "p"
version = "1"
[scriptlets]
packages = ["p"]
substitute = [{ package = "p", find = "a", replace = "b" }]
[first-run]
command = ["setup"]
[verify]
command = ["test"]
"""


def keys(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of a table, and of those in it."""
    for key, value in table.items():
        yield (*path, key)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield from keys(one, (*path, key))


def explained() -> Iterator[tuple[str, ...]]:
    """Yield the keys that a page shows, and those that it names of the tables it shows."""
    for text in MANUAL.values():
        shown: set[tuple[str, ...]] = set()
        for _, block in blocks(text):
            try:
                shown.update(keys(tomllib.loads(block)))
            except tomllib.TOMLDecodeError:
                # Most blocks are something else.
                continue
        yield from shown
        named = re.findall(r"``([a-z_-]+)(?: = [^`]*)?``", text)
        for table in {key[:-1] for key in shown}:
            yield from ((*table, word) for word in named)


def test_every_key_is_in_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own table: many have a ``timeout_s``."""
    read: set[tuple[str, ...]] = set()

    def noting(name: str) -> Any:
        method = getattr(reading._Table, name)

        def take(table: reading._Table, key: str, *args: Any, **more: Any) -> Any:
            read.add((*(part for part in table.path if isinstance(part, str)), key))
            return method(table, key, *args, **more)

        return take

    for name in ("text", "texts", "flag", "seconds", "number", "ports", "table", "tables"):
        monkeypatch.setattr(reading._Table, name, noting(name))
    parse_config(EVERY_TABLE)
    assert {("volume", "mount"), ("verify", "on-failure"), ("first-run", "phase")} <= read
    assert read - set(explained()) == set()


@pytest.mark.parametrize(
    ("topic", "table", "least"),
    [
        ("first-run", "[first-run]\ncommand = ['a']\n", ("phase", "timeout_s")),
        ("ready", "[ready]\n", ("timeout_s",)),
        ("ready", "[verify]\n", ("ready_within_s", "timeout_s")),
        ("scriptlets", "[scriptlets]\npackages = ['a']\n", ("kinds", "phase", "timeout_s")),
        (
            "snapshots",
            "[snapshot]\n",
            ("before_upgrade", "copy_limit_bytes", "files_limit", "keep", "keep_days"),
        ),
    ],
)
def test_what_a_page_shows_of_a_table_is_what_holds_without_it(
    topic: str, table: str, least: tuple[str, ...]
) -> None:
    """But for what is the application's own."""
    key = re.split(r"[\[\]]", table)[1]
    name = key.replace("-", "_")
    (shown, *_) = (
        getattr(parse_config(block.encode()), name)
        for _, block in blocks(MANUAL[topic])
        if block.startswith(f"[{key}]")
    )
    without = getattr(parse_config(table.encode()), name)
    assert {one: getattr(shown, one) for one in least} == {
        one: getattr(without, one) for one in least
    }
