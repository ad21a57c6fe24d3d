"""The configuration of an image, ``/etc/ipavolume.toml``.

Every key is optional. A key that is not known, a value of the wrong type and a value that
makes no sense are faults; all of them are reported at once, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ipavolume.config.model import (
    GENERIC,
    ROLLBACK_WORDS,
    SNAPSHOT_WORDS,
    VERSION_TIMEOUT_S,
    Config,
    DeclaredPackage,
    FirstRunConfig,
    ReadyConfig,
    ScriptletsConfig,
    SnapshotConfig,
    Substitution,
    VerifyConfig,
    VolumeConfig,
    default_volume,
)
from ipavolume.config.pathlist import normalise
from ipavolume.config.profiles import PROFILES
from ipavolume.config.tomllines import KeyPath, key_lines
from ipavolume.errors import ConfigurationError
from ipavolume.model.paths import CONFIG_PATH, is_within
from ipavolume.model.scriptlets import CONFIGURED, GROUPS, KINDS, cannot_run
from ipavolume.model.tasks import MAX_TIMEOUT_S, RUN_PHASES

_MAX_PORT: Final = 65535
_MAX_PATH: Final = 4096
_MAX_NUMBER: Final = 1_000_000
_UNIT: Final = (
    r"(?a)[\w:.\\@*?\[\]][\w:.\\@*?\[\]-]*\.(service|socket|target|mount|timer|path|swap|device|slice|scope"
    r"|automount)"
)
_PACKAGE: Final = r"(?ai)[a-z0-9][a-z0-9._+-]{0,127}"
_VERSION: Final = r"(?ai)([0-9]{1,9}:)?[a-z0-9][a-z0-9._+~^]{0,127}(-[a-z0-9._+~^]{1,127})?"
_APPLICATION: Final = r"(?ai)[a-z0-9][a-z0-9._+-]{0,63}"


def parse_config(data: bytes | None) -> Config:
    """Return the configuration in *data*, or the defaults when there is no file.

    Raises:
        ConfigurationError: If anything is wrong; names every fault with its line.
    """
    if data is None:
        return GENERIC
    # Later: takes longer to load than most of us, and an image may do without a configuration.
    import tomllib

    hint = f"Correct {CONFIG_PATH} in the image."
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        # With a newline at the end every fault of the syntax has a line.
        values = tomllib.loads(text + "\n")
    except (ValueError, RecursionError) as err:
        # Besides what tomllib calls an error, a number that has too many digits for Python.
        reason = str(err) or "nested too deeply"
        raise ConfigurationError(f"{CONFIG_PATH}: {reason}", hint=hint) from err
    faults = _Faults(text)
    config = _read_config(_Table(values, (), faults))
    if faults.found:
        where = sorted(faults.found)
        raise ConfigurationError(
            "; ".join(f"{CONFIG_PATH}:{line}: {fault}" for line, fault in where), hint=hint
        )
    return config


class _Faults:
    """Collects what is wrong, with lines, which are looked for with the first fault."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines: Mapping[KeyPath, int] = {}
        self.found: list[tuple[int, str]] = []

    def add(self, path: KeyPath, fault: str) -> None:
        self._lines = self._lines or key_lines(self._text)
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        found = (self._lines.get(known, 1), f"{_dotted(path)} {fault}")
        if found not in self.found:
            self.found.append(found)


def _dotted(path: KeyPath) -> str:
    """Return a key as people write it; tables of an array are counted from 1."""
    text = "".join(f".{part}" if isinstance(part, str) else f"[{part + 1}]" for part in path)
    return text.removeprefix(".")


class _Table:
    """A table of the file: takes keys out, and complains of those that remain."""

    def __init__(self, values: Mapping[str, Any], path: KeyPath, faults: _Faults) -> None:
        self._values = dict(values)
        self.path = path
        self.faults = faults

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fault(self, key: str, fault: str) -> None:
        self.faults.add((*self.path, key) if key else self.path, fault)

    def done(self) -> None:
        for key in self._values:
            self.fault(key, "is not a known key")

    def text(self, key: str, default: str, *, check: Callable[[str], str] | None = None) -> str:
        if key not in self._values:
            return default
        value = self._values.pop(key)
        if not isinstance(value, str):
            self.fault(key, "must be a string")
            return default
        if fault := _text_fault(value) or (check(value) if check else ""):
            self.fault(key, fault)
            return default
        return value

    def path_text(self, key: str, default: str) -> str:
        value = self.text(key, default, check=_path_fault)
        return normalise(value) if value else value

    def texts(
        self,
        key: str,
        default: tuple[str, ...],
        *,
        check: Callable[[str], str] | None = None,
    ) -> tuple[str, ...]:
        if key not in self._values:
            return default
        value = self._values.pop(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, "must be an array of strings")
            return default
        for item in value:
            if fault := _text_fault(item) or (check(item) if check else ""):
                self.fault(key, fault)
        return tuple(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.pop(key, default)
        if not isinstance(value, bool):
            self.fault(key, "must be true or false")
            return default
        return value

    def seconds(self, key: str, default: int) -> int:
        value = self._values.pop(key, default)
        if type(value) is not int or not 1 <= value <= MAX_TIMEOUT_S:
            self.fault(key, f"must be a whole number from 1 to {MAX_TIMEOUT_S}")
            return default
        return value

    def number(self, key: str, default: int) -> int:
        value = self._values.pop(key, default)
        if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
            self.fault(key, f"must be a whole number from 0 to {_MAX_NUMBER}")
            return default
        return value

    def ports(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._values.pop(key, list(default))
        if not isinstance(value, list) or not all(
            type(item) is int and 1 <= item <= _MAX_PORT for item in value
        ):
            self.fault(key, f"must be an array of whole numbers from 1 to {_MAX_PORT}, TCP ports")
            return default
        return tuple(value)

    def table(self, key: str) -> _Table:
        value = self._values.pop(key, {})
        if not isinstance(value, dict):
            self.fault(key, "must be a table")
            value = {}
        return _Table(value, (*self.path, key), self.faults)

    def tables(self, key: str) -> list[_Table]:
        value = self._values.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fault(key, "must be an array of tables")
            return []
        return [
            _Table(item, (*self.path, key, number), self.faults)
            for number, item in enumerate(value)
        ]


def _text_fault(value: str) -> str:
    return "holds a NUL character" if "\0" in value else ""


def _path_fault(value: str) -> str:
    if not value.startswith("/"):
        return f"{value!r} is not an absolute path"
    return _length_fault(value)


def _length_fault(value: str) -> str:
    """Say that *value* is longer than any path; to make a pattern of a glob takes its square."""
    return "" if len(value) <= _MAX_PATH else f"{value!r:.80} is longer than a path can be"


def _glob_fault(value: str) -> str:
    return _filled(value) or _length_fault(value)


def _service_fault(value: str) -> str:
    name = value.removesuffix(".service")
    allowed = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if name == value or not allowed:
        return f"{value!r} is not a name such as 'application-upgrade.service'"
    return ""


def _unit_fault(value: str) -> str:
    if len(value) > _MAX_PATH or not re.fullmatch(_UNIT, value):
        return f"{value!r:.80} is neither a unit such as 'my-server.service' nor a glob of units"
    return ""


def application_fault(value: str) -> str:
    """Say why *value* cannot be what an application is called; "" when it can."""
    if not re.fullmatch(_APPLICATION, value):
        return f"{value!r:.80} is not a word such as 'my-server'"
    return ""


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        return "" if value in words else f"{value!r} is none of {', '.join(words)}"

    return check


def _accept_fault(rule: str) -> str:
    # Imported here because packaging is slow to load and few images have rules of their own.
    from ipavolume.config.releases import validate_accept_rule

    return validate_accept_rule(rule) or ""


def _filled(value: str) -> str:
    return "" if value else "holds an empty string"


def _read_config(top: _Table) -> Config:
    profile = top.text("profile", "", check=_one_of(tuple(name for name in PROFILES if name)))
    default = PROFILES[profile]
    volumes_given = "volume" in top
    volumes = _read_volumes(top)
    start = top.table("start")
    accept = top.table("accept")
    files = top.table("files")
    lock = top.table("lock")
    has_guard = "guard" in accept or default.accept_guard is not None
    guard = accept.texts("guard", default.accept_guard or (), check=_package_fault)
    config = Config(
        profile=profile,
        volumes=volumes or default.volumes,
        application=top.texts("application", default.application, check=application_fault),
        volumes_given=volumes_given,
        start_exec=start.texts("exec", default.start_exec, check=_filled),
        log_follow=start.texts("log-follow", default.log_follow, check=_path_fault),
        online_unit=start.text("online-unit", default.online_unit, check=_service_fault),
        accept_from=accept.texts("from", default.accept_from, check=_accept_fault),
        accept_guard=tuple(name.removeprefix("?") for name in guard) if has_guard else None,
        guard_optional=tuple(name[1:] for name in guard if name.startswith("?")),
        files_refresh=files.texts("refresh", default.files_refresh, check=_path_fault),
        packages=_read_packages(top),
        scriptlets=_read_scriptlets(top, default.scriptlets),
        first_run=_read_first_run(top, default.first_run),
        ready=_read_ready(top, default.ready),
        verify=_read_verify(top, default.verify),
        start_supervise=start.flag("supervise", default=default.start_supervise),
        lock_lost=lock.text("lost", default.lock_lost, check=_one_of(("end", "keep"))),
        snapshot=_read_snapshot(top, default.snapshot),
        uncommitted=_read_uncommitted(top, default.uncommitted),
    )
    for table in (start, accept, files, lock, top):
        table.done()
    return config


def _read_volumes(top: _Table) -> tuple[VolumeConfig, ...]:
    volumes: list[VolumeConfig] = []
    tables = top.tables("volume")
    for table in tables:
        if "mount" not in table:
            table.fault("", "has no mount")
        mount = table.path_text("mount", "/data")
        usual = default_volume(mount)
        volume = VolumeConfig(
            mount=mount,
            template=table.path_text("template", usual.template),
            lists=table.texts("lists", usual.lists, check=_path_fault),
            volatile=table.flag("volatile", default=False),
            seed=table.texts("seed", (), check=_glob_fault),
            refill=table.flag("refill", default=False),
        )
        for key, path in (("mount", volume.mount), ("template", volume.template)):
            if fault := place_fault(path):
                table.fault(key, fault)
        if volume.refill and (volume.volatile or not volumes):
            table.fault(
                "refill",
                "cannot be true for a volatile volume, which is filled at each start"
                if volume.volatile
                else "cannot be true for the first volume, whose data nobody can fill again",
            )
        _check_apart(table, volume, volumes)
        table.done()
        volumes.append(volume)
    if volumes and volumes[0].volatile:
        tables[0].fault("volatile", "cannot be true for the first volume, which keeps the journal")
    return tuple(volumes)


_VERSION_KEYS: Final = ("version", "version-file", "version-command")


def _read_packages(top: _Table) -> tuple[DeclaredPackage, ...]:
    packages: list[DeclaredPackage] = []
    for table in top.tables("package"):
        if "name" not in table:
            table.fault("", "has no name")
        given = [key for key in _VERSION_KEYS if key in table]
        if len(given) != 1:
            table.fault("", f"has to have one of {', '.join(_VERSION_KEYS)}")
        package = DeclaredPackage(
            name=table.text("name", "", check=_package_name_fault),
            version=table.text("version", "", check=version_fault),
            version_file=table.path_text("version-file", ""),
            version_command=table.texts("version-command", (), check=_filled),
            timeout_s=table.seconds("timeout_s", VERSION_TIMEOUT_S),
            config=table.texts("config", (), check=_path_fault),
        )
        if given == ["version-command"] and not package.version_command:
            table.fault("version-command", "is empty")
        if package.name and any(package.name == other.name for other in packages):
            table.fault("name", f"{package.name!r} is declared twice")
        table.done()
        packages.append(package)
    return tuple(packages)


def _package_name_fault(value: str) -> str:
    if not re.fullmatch(_PACKAGE, value):
        return f"{value!r:.80} is no name of a package, such as 'my-server'"
    return ""


def version_fault(value: str) -> str:
    """Say why *value* cannot be the version of a package; "" when it can."""
    if not re.fullmatch(_VERSION, value):
        return f"{value!r:.80} is no version such as '2.4.1', '2.4.1-3' or '1:2.4.1-3'"
    return ""


_NEEDED: Final = ("/proc", "/sys", "/dev", "/etc/ipavolume", "/usr/share/ipavolume")


def place_fault(path: str) -> str:
    """Say why *path* can be neither a mount nor a template; "" when it can."""
    if path == "/":
        return "cannot be the root of the image"
    if any(is_within(path, needed) or is_within(needed, path) for needed in _NEEDED):
        return f"cannot be {path!r}, which the system or ipavolume needs itself"
    return ""


def _check_apart(table: _Table, volume: VolumeConfig, others: list[VolumeConfig]) -> None:
    if is_within(volume.mount, volume.template) or is_within(volume.template, volume.mount):
        table.fault("template", f"{volume.template!r} and {volume.mount!r} lie in one another")
    for key, path in (("mount", volume.mount), ("template", volume.template)):
        for other in others:
            for what, taken in (("mount", other.mount), ("template", other.template)):
                if path == taken:
                    table.fault(key, f"{path!r} is the {what} of another volume already")
                elif is_within(path, taken) or is_within(taken, path):
                    table.fault(key, f"{path!r} and the {what} {taken!r} lie in one another")


def _read_scriptlets(top: _Table, default: ScriptletsConfig | None) -> ScriptletsConfig | None:
    if "scriptlets" not in top:
        return default
    table = top.table("scriptlets")
    usual = default or ScriptletsConfig()
    substitute = usual.substitute
    if "substitute" in table:
        substitute = tuple(_read_substitution(item) for item in table.tables("substitute"))
    config = ScriptletsConfig(
        packages=table.texts("packages", usual.packages, check=_package_fault),
        kinds=table.texts("kinds", usual.kinds, check=_kind_fault),
        phase=table.text("phase", usual.phase, check=_one_of(RUN_PHASES)),
        timeout_s=table.seconds("timeout_s", usual.timeout_s),
        substitute=substitute,
        repeatable=table.texts("repeatable", usual.repeatable, check=_glob_fault),
    )
    table.done()
    return config if config.packages else None


def _package_fault(name: str) -> str:
    return _glob_fault(name.removeprefix("?"))


def _kind_fault(kind: str) -> str:
    if kind in KINDS and kind not in CONFIGURED:
        reason = cannot_run(kind) or f"it is called {GROUPS[kind]!r} here"
        return f"names {kind!r}, which cannot run: {reason}"
    return _one_of(CONFIGURED)(kind)


def _read_substitution(table: _Table) -> Substitution:
    for key in ("package", "find", "replace"):
        if key not in table:
            table.fault("", f"has no {key}")
    substitution = Substitution(
        package=table.text("package", "", check=_filled),
        find=table.text("find", "", check=_filled),
        replace=table.text("replace", ""),
    )
    table.done()
    return substitution


def _read_first_run(top: _Table, default: FirstRunConfig | None) -> FirstRunConfig | None:
    if "first-run" not in top:
        return default
    table = top.table("first-run")
    usual = default or FirstRunConfig(command=())
    if not usual.command and "command" not in table:
        table.fault("", "has no command")
    config = FirstRunConfig(
        command=table.texts("command", usual.command, check=_filled),
        phase=table.text("phase", usual.phase, check=_one_of(RUN_PHASES)),
        done_when=table.path_text("done-when", usual.done_when),
        waiting_when=table.path_text("waiting-when", usual.waiting_when),
        ruins_when=table.path_text("ruins-when", usual.ruins_when),
        timeout_s=table.seconds("timeout_s", usual.timeout_s),
    )
    table.done()
    return config if config.command else None


def _read_ready(top: _Table, default: ReadyConfig) -> ReadyConfig:
    table = top.table("ready")
    config = ReadyConfig(
        units=table.texts("units", default.units, check=_unit_fault),
        ports=table.ports("ports", default.ports),
        command=table.texts("command", default.command, check=_filled),
        timeout_s=table.seconds("timeout_s", default.timeout_s),
        ignore=table.texts("ignore", default.ignore, check=_glob_fault),
    )
    table.done()
    return config


def _read_uncommitted(top: _Table, default: str) -> str:
    table = top.table("rollback")
    word = table.text("uncommitted", default, check=_one_of(ROLLBACK_WORDS))
    table.done()
    return word


def _read_verify(top: _Table, default: VerifyConfig | None) -> VerifyConfig | None:
    if "verify" not in top:
        return default
    table = top.table("verify")
    usual = default or VerifyConfig()
    kept = "rollback" if usual.goes_back else "keep"
    config = VerifyConfig(
        command=table.texts("command", usual.command, check=_filled),
        ready_within_s=table.seconds("ready-within-s", usual.ready_within_s),
        timeout_s=table.seconds("timeout-s", usual.timeout_s),
        goes_back=table.text("on-failure", kept, check=_one_of(("keep", "rollback"))) == "rollback",
    )
    table.done()
    return config


def _read_snapshot(top: _Table, default: SnapshotConfig) -> SnapshotConfig:
    table = top.table("snapshot")
    limit = table.text("copy-limit", "", check=_size_fault)
    config = SnapshotConfig(
        before_upgrade=table.text(
            "before-upgrade", default.before_upgrade, check=_one_of(SNAPSHOT_WORDS)
        ),
        copy_limit_bytes=_bytes(limit) if limit else default.copy_limit_bytes,
        files_limit=table.number("files-limit", default.files_limit),
        keep=table.number("keep", default.keep),
        keep_days=table.number("keep-days", default.keep_days),
        leave_out=table.texts("leave-out", default.leave_out, check=_path_fault),
    )
    table.done()
    return config


_SIZE: Final = r"([0-9]{1,6}) ?([KMGT])iB"


def _size_fault(value: str) -> str:
    return (
        "" if re.fullmatch(_SIZE, value) else f"{value!r:.80} is no size such as '1GiB' or '500MiB'"
    )


def _bytes(value: str) -> int:
    match = re.fullmatch(_SIZE, value)
    return int(match[1]) << 10 * ("KMGT".index(match[2]) + 1) if match else 0
