"""The configuration as data, and what holds where nothing is written."""

from __future__ import annotations

from typing import Final

from ipavolume.model.values import dataclass

MAX_CONFIGURATION_BYTES: Final = 1 << 20
VERSION_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    """A volume as configured.

    Attributes:
        mount: Where the container sees it.
        template: Where the image keeps its pristine content; by default the mount with
            ``-template``.
        lists: Path lists; by default ``/etc/volume-NAME-list`` with the mount's last name.
        volatile: Emptied and filled at each start, never upgraded.
        seed: Globs of what may be there before the volume is populated, whoever it belongs to.
        refill: An empty one may take its place at any time, and is filled again.
    """

    mount: str
    template: str
    lists: tuple[str, ...]
    volatile: bool = False
    seed: tuple[str, ...] = ()
    refill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """What is replaced in the scriptlets of a package.

    Attributes:
        package: Name of the package.
        find: Text to find.
        replace: Text to put in its place.
    """

    package: str
    find: str
    replace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptletsConfig:
    """Which scriptlets of packages run at an upgrade.

    Attributes:
        packages: Names, globs of names, or what packages provide; a leading ``?`` means that
            none need be installed.
        kinds: Kinds of scriptlets, of :data:`ipavolume.model.scriptlets.CONFIGURED`.
        phase: When they run.
        timeout_s: Seconds that each may take.
        substitute: What is replaced in them.
        repeatable: Packages, of those, whose triggers may run although they ask for a version
            that is unknown, because running them for nothing does no harm.
    """

    packages: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("post", "trigger", "posttrans")
    phase: str = "online"
    timeout_s: int = 600
    substitute: tuple[Substitution, ...] = ()
    repeatable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredPackage:
    """Software that no package manager of the image knows, declared as a package.

    Of the three that say its version exactly one is given.

    Attributes:
        name: What it is called.
        version: ``epoch:version-release`` as far as there is any of it.
        version_file: Path of a file in the image that holds that, and nothing else.
        version_command: Words of a command that prints that, and nothing else.
        timeout_s: Seconds that the command may take.
        config: Globs of its listed configuration files, which count as ``%config(noreplace)``.
    """

    name: str
    version: str = ""
    version_file: str = ""
    version_command: tuple[str, ...] = ()
    timeout_s: int = VERSION_TIMEOUT_S
    config: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRunConfig:
    """The command that configures a fresh volume.

    Attributes:
        command: Words of the command.
        phase: When it runs.
        done_when: Path that exists when it has done its work, or "".
        waiting_when: Path that exists while it waits for an answer, or "".
        ruins_when: Path that exists when it cannot simply be run again, or "".
        timeout_s: Seconds that it may take.
    """

    command: tuple[str, ...]
    phase: str = "online"
    done_when: str = ""
    waiting_when: str = ""
    ruins_when: str = ""
    timeout_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyConfig:
    """What the application is asked for, once it has been started, before it is called ready.

    Attributes:
        units: Names of systemd units that are to be active, or globs of those that systemd
            has loaded; of a glob's at least one is to be there.
        ports: TCP ports to which one can connect by the container's loopback address.
        command: Words of a command that is to end with status 0; empty: none.
        timeout_s: Seconds that the command may take.
        ignore: Globs of systemd units that may fail.
    """

    units: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    command: tuple[str, ...] = ()
    timeout_s: int = 1
    # Much of what systemd itself brings up cannot work in a container, and nobody misses it.
    ignore: tuple[str, ...] = ("systemd-*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """What is asked once of each run's outcome, by the container itself.

    Attributes:
        command: Words of a command that is to end with status 0; empty: only steps are asked.
        ready_within_s: Seconds from the start on within which the application is to be ready.
        timeout_s: Seconds from then on within which everything is to be found right.
        goes_back: What is not found to be right is taken from this image, the container ends, and
            the image of before goes back to what it left; otherwise it stays.
    """

    command: tuple[str, ...] = ()
    ready_within_s: int = 1800
    timeout_s: int = 600
    goes_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    """What is kept of the volumes before an upgrade, to go back to.

    Attributes:
        before_upgrade: ``auto``: where it is cheap; ``always``: or the upgrade is refused;
            ``never``.
        copy_limit_bytes: The largest copy that ``auto`` makes where files cannot be cloned.
        files_limit: The most files that ``auto`` clones or copies.
        keep: How many stay once an upgrade is committed.
        keep_days: Older ones are named where room is short.
        leave_out: Globs of what is not kept, and not brought back either.
    """

    before_upgrade: str = "auto"
    copy_limit_bytes: int = 1 << 30
    files_limit: int = 200_000
    keep: int = 1
    keep_days: int = 7
    leave_out: tuple[str, ...] = ()


ROLLBACK_WORDS: Final = ("auto", "refuse")
SNAPSHOT_WORDS: Final = ("auto", "always", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration, defaults filled in.

    Attributes:
        profile: Name of the profile, or "".
        application: What the application is called: the first word is recorded on the volumes,
            and those with any of the words are its own. Empty: nobody said.
        volumes: The volumes; the first is the primary one.
        volumes_given: The file itself declares the volumes.
        start_exec: What ``start`` executes at the end; empty: the command line's words.
        log_follow: Logs whose lines are shown while a command runs.
        online_unit: Name of the systemd unit that runs the online phase.
        accept_from: Releases whose volumes are accepted; empty: same id, same major.
        accept_guard: Packages that must not go back; ``None``: nobody said, which means all.
        guard_optional: Those of them that need not be in the image.
        files_refresh: Globs of template files that no package owns and that a new image
            may replace while they are unedited.
        packages: Software that is declared as packages.
        scriptlets: Which scriptlets run, or ``None`` for none.
        first_run: What configures a fresh volume, or ``None`` for nothing.
        ready: When the application is ready.
        verify: What is asked once of each run's outcome, or ``None`` for nothing.
        start_supervise: Without systemd, the start stays what it is, and what it executes is its
            child.
        lock_lost: What follows when the lock of a volume on a network is lost: ``end`` the
            container or ``keep`` it; "": it is ended on NFS.
        snapshot: What is kept of the volumes before an upgrade.
        uncommitted: What becomes of an upgrade that was never completed when this image, which it
            began from, is started again: ``auto``: it is undone; ``refuse``.
    """

    profile: str
    volumes: tuple[VolumeConfig, ...]
    application: tuple[str, ...] = ()
    volumes_given: bool = False
    start_exec: tuple[str, ...] = ()
    log_follow: tuple[str, ...] = ()
    online_unit: str = "ipavolume-online.service"
    accept_from: tuple[str, ...] = ()
    accept_guard: tuple[str, ...] | None = None
    guard_optional: tuple[str, ...] = ()
    files_refresh: tuple[str, ...] = ()
    packages: tuple[DeclaredPackage, ...] = ()
    scriptlets: ScriptletsConfig | None = None
    first_run: FirstRunConfig | None = None
    ready: ReadyConfig = ReadyConfig()
    verify: VerifyConfig | None = None
    start_supervise: bool = False
    lock_lost: str = ""
    snapshot: SnapshotConfig = SnapshotConfig()
    uncommitted: str = "auto"

    @property
    def refilled(self) -> tuple[str, ...]:
        """Mounts of the volumes whose place an empty one may take at any time."""
        return tuple(one.mount for one in self.volumes if one.refill)


def default_volume(mount: str) -> VolumeConfig:
    """Return the volume at *mount* as it is when nothing more is said of it."""
    return VolumeConfig(
        mount=mount,
        template=mount + "-template",
        lists=(f"/etc/volume-{mount.rpartition('/')[2]}-list",),
    )


GENERIC: Final = Config(profile="", volumes=(default_volume("/data"),))
