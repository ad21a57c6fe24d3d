"""What the stand-ins for FreeIPA's programs have in common.

They do what the real ones do in what a volume's lifecycle depends on: which files they write, in
which order, what of it is left when they are killed, which units they restart. The directory
server, Kerberos, gssproxy and certmonger are real.

A test can stop or break them at each stage, by files in a directory that it mounts at
``CONTROL``: at ``fail-STAGE`` the stage fails, while ``hold-STAGE`` is there it waits, and
``reached-STAGE`` is left when it begins. ``BUILT_IN`` has the same of a faulty image.

Source: FreeIPA 4.13, ``ipaserver/install/server/install.py``, ``upgradeinstance.py``,
``server/upgrade.py``, ``ipactl.py``, ``sysrestore.py``, ``ipaplatform/fedora_container/paths.py``.
"""

import configparser
import os
import subprocess
import sys
import time

import ldap
import ldap.sasl

CONTROL = "/standin"
BUILT_IN = "/usr/lib/standin"
VERSION_FILE = "/usr/share/ipa/version"
DEFAULT_CONF = "/etc/ipa/default.conf"
CA_CRT = "/etc/ipa/ca.crt"
SYSRESTORE = "/var/lib/ipa/sysrestore"
SYSUPGRADE = "/var/lib/ipa/sysupgrade"
PLATFORM = os.environ.get("IPAPLATFORM_OVERRIDE", "fedora")


class StandinError(Exception):
    """What the real program would report and end with."""


def in_container(path):
    """Return where the platform has *path*: programs that make files do not follow links."""
    return f"/data{path}" if PLATFORM.endswith("_container") else path


def say(text):
    """Print a line at once, whoever reads it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def stage(name):
    """Begin a stage: say so to the test, wait for it, or fail."""
    if os.path.isdir(CONTROL):
        with open(f"{CONTROL}/reached-{name}", "a"):
            pass
        while os.path.lexists(f"{CONTROL}/hold-{name}"):
            time.sleep(0.05)
    if is_told_to_fail(name):
        raise StandinError(f"{name} was told to fail")


def is_told_to_fail(name):
    """Tell whether the test, or the image, wants a stage or a unit to fail."""
    return any(os.path.lexists(f"{place}/fail-{name}") for place in (CONTROL, BUILT_IN))


class Steps:
    """The steps of a service, counted as FreeIPA does; some run after a failure as well.

    Source: ``Service.start_creation`` in ``ipaserver/install/service.py``.
    """

    def __init__(self, title):
        """Begin without a step."""
        self._title = title
        self._steps = []

    def step(self, text, function, *, run_after_failure=False):
        """Add a step."""
        self._steps.append((text, function, run_after_failure))

    def run(self):
        """Carry them out."""
        say(self._title)
        failed = None
        for number, (text, function, run_after_failure) in enumerate(self._steps, 1):
            if failed is not None and not run_after_failure:
                continue
            say(f"  [{number}/{len(self._steps)}]: {text}")
            try:
                function()
            except (StandinError, OSError, subprocess.CalledProcessError, ldap.LDAPError) as err:
                say(f"  [error] {type(err).__name__}: {err}")
                failed = failed or err
        if failed is not None:
            raise failed
        say(f"Done: {self._title}")


def run(*words):
    """Run a command; what it prints is shown when it fails."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        say(done.stdout.rstrip())
        done.check_returncode()
    return done.stdout


def systemctl(*words):
    """Have systemd do something and wait for it, as ``ipaplatform.base.services`` does."""
    run("systemctl", *words)


def is_active(unit):
    """Tell whether a unit is active."""
    return subprocess.run(("systemctl", "is-active", "-q", unit), check=False).returncode == 0


class StateFile:
    """Notes in ``sysrestore.state`` or ``sysupgrade.state``; every change is written at once."""

    def __init__(self, directory, name="sysrestore.state"):
        """Take the file *name* of *directory*."""
        self._path = f"{directory}/{name}"
        self._parser = configparser.RawConfigParser()
        self._parser.optionxform = str
        self._parser.read(self._path)

    def get(self, section, key):
        """Return a note, or ``None``."""
        return self._parser.get(section, key, fallback=None)

    def put(self, section, key, value):
        """Make a note."""
        if not self._parser.has_section(section):
            self._parser.add_section(section)
        self._parser.set(section, key, str(value))
        self._save()

    def drop(self, section, key):
        """Drop a note, and its section with the last one."""
        if self._parser.has_option(section, key):
            self._parser.remove_option(section, key)
            if not self._parser.options(section):
                self._parser.remove_section(section)
            self._save()

    def _save(self):
        with open(self._path, "w") as stream:
            self._parser.write(stream)


class Server:
    """The installed server, by ``/etc/ipa/default.conf``."""

    def __init__(self, realm, host):
        """Take the realm and the host's name."""
        self.realm, self.host = realm, host
        self.domain = realm.lower()
        self.serverid = realm.replace(".", "-")
        self.suffix = ",".join(f"dc={part}" for part in self.domain.split("."))
        self.dirsrv = f"dirsrv@{self.serverid}.service"
        self.dse = f"/etc/dirsrv/slapd-{self.serverid}/dse.ldif"

    @classmethod
    def installed(cls):
        """Return the server that is installed here."""
        parser = configparser.RawConfigParser()
        parser.read(DEFAULT_CONF)
        return cls(parser.get("global", "realm"), parser.get("global", "host"))

    def connect(self):
        """Return a connection by the local socket, as root."""
        socket = f"/run/slapd-{self.serverid}.socket"
        connection = ldap.initialize(f"ldapi://{socket.replace('/', '%2F')}")
        connection.sasl_interactive_bind_s("", ldap.sasl.external())
        return connection


def is_configured():
    """Tell whether the installation is complete (``ipalib.facts.is_ipa_configured``)."""
    return StateFile(SYSRESTORE).get("installation", "complete") == "True"


def version():
    """Return the version of the programs."""
    with open(VERSION_FILE) as stream:
        return stream.read().strip()


def _numbers(text):
    return [int(part) for part in text.split("-")[0].split(".")]


def version_error():
    """Return why the data are not those of this version; "" when they are (``check_version``)."""
    notes = StateFile(SYSUPGRADE, "sysupgrade.state")
    data, platform = notes.get("ipa", "data_version"), notes.get("ipa", "platform")
    if platform != PLATFORM.removesuffix("_container"):
        return "no platform stored"
    if data is None:
        return "no data_version stored"
    if _numbers(data) < _numbers(version()):
        return (
            f"data needs to be upgraded (expected version '{version()}', current version '{data}')"
        )
    if _numbers(data) > _numbers(version()):
        return (
            f"data are in newer version than IPA (data version '{data}', IPA version '{version()}')"
        )
    return ""


def store_version():
    """Note that the data are those of this version."""
    notes = StateFile(SYSUPGRADE, "sysupgrade.state")
    notes.put("ipa", "data_version", version())
    notes.put("ipa", "platform", PLATFORM.removesuffix("_container"))


def update_data(server):
    """Bring the data to this version; return whether anything was changed."""
    name, wanted = f"cn=ipaConfig,{server.suffix}", [f"IPA {version()}".encode()]
    connection = server.connect()
    try:
        ((_, entry),) = connection.search_s(name, ldap.SCOPE_BASE)
        if entry.get("description") == wanted:
            return False
        connection.modify_s(name, [(ldap.MOD_REPLACE, "description", wanted)])
    except ldap.NO_SUCH_OBJECT:
        entry = {"objectClass": [b"applicationProcess"], "description": wanted}
        connection.add_s(name, list(entry.items()))
    finally:
        connection.unbind_s()
    return True


def run_program(name, log, main):
    """Run *main* as FreeIPA's admintool runs a program: a log, a last line, a status."""
    try:
        main()
    except (StandinError, OSError, subprocess.CalledProcessError, ldap.LDAPError) as err:
        text = f"The {name} command failed, exception: {type(err).__name__}: {err}"
        with open(log, "a") as stream:
            stream.write(f"{text}\n")
        say(f"ipapython.admintool: ERROR    {text}")
        text = f"The {name} command failed. See {log} for more information"
        say(f"ipapython.admintool: ERROR    {text}")
        sys.exit(1)
    say(f"The {name} command was successful")
