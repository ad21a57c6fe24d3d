"""What a build finds in an image, and which of it stops the build.

Each kind has a code. An *error* cannot work; a *warning* probably was not meant, and stops only a
strict build; a *note* stops none. The text of a code is for people who look it up: what it means,
and what to do.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from typing import Final

from ipavolume.errors import ConfigurationError, UsageError
from ipavolume.model.values import dataclass


class Severity(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Code(enum.StrEnum):
    """The kinds of findings; the text of each is in :data:`MEANINGS`."""

    ABSENT_DIRECTORY = "absent-directory"
    ABSENT_FILE = "absent-file"
    CONFIG_OWNED = "config-owned"
    CONFIG_SWITCH = "config-switch"
    DAMAGED_MANIFEST = "damaged-manifest"
    ENGINE_LISTED = "engine-listed"
    HIDDEN_CONTENT = "hidden-content"
    KEPT_FILE = "kept-file"
    LISTED_ACCOUNTS = "listed-accounts"
    LISTED_AS_DIRECTORY = "listed-as-directory"
    LISTED_AS_FILE = "listed-as-file"
    LISTED_TWICE = "listed-twice"
    LIST_COMMENT = "list-comment"
    LIST_GLOB = "list-glob"
    NO_ACCOUNT = "no-account"
    NO_IPAVOLUME = "no-ipavolume"
    NO_PROGRAM = "no-program"
    NO_VERSION = "no-version"
    NOTHING_TO_EXECUTE = "nothing-to-execute"
    PACKAGE_OWNED = "package-owned"
    PASSED_BY_SCRIPTLET = "passed-by-scriptlet"
    PRE_RELEASE = "pre-release"
    PROFILE_FILES = "profile-files"
    PROGRAMS_LISTED = "programs-listed"
    RELATIVE_LINK = "relative-link"
    REMOVED_STEP = "removed-step"
    REPLACED_BY_SCRIPTLET = "replaced-by-scriptlet"
    RPM_LEFTOVER = "rpm-leftover"
    RUNTIME_LISTED = "runtime-listed"
    SAME_VERSION = "same-version"
    SHIPPED_DATABASE = "shipped-database"
    SHIPPED_SECRET = "shipped-secret"  # noqa: S105 - the word for one
    SINGLE_FILE = "single-file"
    SNAPSHOT_NOT_SURE = "snapshot-not-sure"
    SPECIAL_FILE = "special-file"
    SUPERSEDED_UNIT = "superseded-unit"
    UNIT_ORDER = "unit-order"
    UNKNOWN_GUARD = "unknown-guard"
    UNKNOWN_UNIT = "unknown-unit"
    UNSEEN_MARK = "unseen-mark"
    UNUSED_CONFIG = "unused-config"
    UNUSED_REFRESH = "unused-refresh"
    UNUSED_SUBSTITUTION = "unused-substitution"


MEANINGS: Final[dict[Code, str]] = {
    Code.ABSENT_DIRECTORY: (
        "A listed directory is not in the image, and no package has it or anything in it. It is "
        "made empty. If that is meant, make it when the image is built (RUN mkdir -p); otherwise "
        "the line is misspelt."
    ),
    Code.ABSENT_FILE: (
        "A listed file is not in the image, so its link leads to nothing until a program makes "
        "the file. One that creates it with O_CREAT|O_EXCL, as cp does, fails there, and one that "
        "writes another file and renames it replaces the link: for such a one list the directory, "
        "or make the file when the image is built. A keytab is of this kind, and an empty file is "
        "none: printf '\\005\\002' makes one without keys."
    ),
    Code.CONFIG_OWNED: (
        "A glob of [[package]] config matches a file that another package owns, an rpm or one "
        "that is declared, too. A file has one owner, whose rules hold: write the glob narrower."
    ),
    Code.CONFIG_SWITCH: (
        "A glob of [[package]] config matches links by which something is switched on, as those in "
        "sites-enabled/ and mods-enabled/. One that was deleted, to switch it off, comes back with "
        "the next upgrade, as a configuration file does. Write the globs so that they name what is "
        "beside these directories: * matches a slash as well. A link that is to be there always "
        "is named by its path, without a wildcard."
    ),
    Code.DAMAGED_MANIFEST: (
        "The manifest that the image had cannot be read. It is made anew; what an earlier prepare "
        "had listed and the lists no longer have is not known any more."
    ),
    Code.ENGINE_LISTED: (
        "A list has a file that docker, podman and Kubernetes write for each container and mount "
        "there: what is on the volume is not seen then. Have the engine write it: -h, --add-host, "
        "--dns, the pod's hostAliases and dnsConfig."
    ),
    Code.HIDDEN_CONTENT: (
        "Where a volume is mounted the image has content. Nobody sees it once the volume is "
        "there: take it out, or list the path that it belongs to. In an image that is derived "
        "from a prepared one a listed path is a link: put what COPY or RUN has for it into the "
        "template (/data-template/etc/my-server/)."
    ),
    Code.KEPT_FILE: (
        "Where prepare would put a file of its own there is another one, which was left. Have it "
        "do what that of ipavolume does, or remove it."
    ),
    Code.LISTED_ACCOUNTS: (
        "A list has /etc/passwd or /etc/group. Where somebody has edited it on a volume, it stays "
        "there as it is; an image in which accounts have other numbers gives their files to those "
        "all the same, and the programs of the container know the old ones. Keep accounts in the "
        "image (RUN useradd): what is theirs follows them by name."
    ),
    Code.LISTED_AS_DIRECTORY: (
        "A path with a slash at its end is no directory in the image. Take the slash away."
    ),
    Code.LISTED_AS_FILE: (
        "A path without a slash at its end is a directory in the image. It is kept all the same; "
        "in an image without it, it would not be made. Put a slash behind it."
    ),
    Code.LISTED_TWICE: (
        "A path stands more than once in the lists of a volume. Take one of the lines out."
    ),
    Code.LIST_COMMENT: (
        "A line of a path list goes on with a comment. Only a whole line is one: put it above the "
        "path."
    ),
    Code.LIST_GLOB: (
        "A line of a path list has a wildcard, and nothing in the image has that name. Lists have "
        "no wildcards: name the directory."
    ),
    Code.NO_ACCOUNT: (
        "An account or group had another number, or was there, when the image was prepared before, "
        "and what is in the template still belongs to the number that nobody has now: usermod and "
        "groupmod do not look there. On a volume all other files of the account would be given to "
        "its new number, and these to nobody. Give them to the account in the template."
    ),
    Code.NO_IPAVOLUME: (
        "The units and the wrapper of ipavolume are in the image, the program is not. Install it "
        "there."
    ),
    Code.NO_PROGRAM: (
        "A command of the configuration begins with what is no program in the image. A later "
        "layer may bring it; otherwise the name is misspelt, or the package is missing."
    ),
    Code.NO_VERSION: (
        "The version of a [[package]] cannot be read: its file is missing or holds something "
        "else, or its command fails, takes too long or prints something else. One line with the "
        "version is what is expected. A command is run only where prepare works in the image "
        "itself."
    ),
    Code.NOTHING_TO_EXECUTE: (
        "systemd is in the image, and nothing says that a start executes it. With "
        '/usr/local/sbin/init as the entry point write exec = ["/usr/sbin/init"] in [start] of '
        "/etc/ipavolume.toml: otherwise the container ends once its volume is current. An image "
        "whose command (CMD) is what is executed does not need it. It never stops a build."
    ),
    Code.PACKAGE_OWNED: (
        "A [[package]] has the name of an rpm of the image. Take the declaration out: the rpm has "
        "a version and files of its own."
    ),
    Code.PASSED_BY_SCRIPTLET: (
        "A scriptlet goes through a listed directory by a command that does not follow the link to "
        "the volume: chown -R, find and cp -a see the link and no file. Have it go to the link's "
        "target ([scriptlets] substitute)."
    ),
    Code.PRE_RELEASE: (
        "A [[package]] has a version as others write one that comes before a release. Versions "
        "are compared as rpm does, to which 2.0.0-rc.1 and 2.0rc1 are newer than 2.0.0: a volume "
        "of this image would not go on to the release (newer). Write it with a tilde, 2.0.0~rc.1."
    ),
    Code.PROFILE_FILES: (
        "Files of the profile's own lists are not in the image. No image has all of them, and the "
        "programs of the profile make them where the links lead to. It never stops a build."
    ),
    Code.PROGRAMS_LISTED: (
        "A listed directory holds programs that a container needs before its volume is there, or "
        "to build the image any further. List what in it is written at run time."
    ),
    Code.RELATIVE_LINK: (
        "A relative link led to something in the image and leads to nothing from where it is on "
        "the volume. Make it absolute."
    ),
    Code.REMOVED_STEP: (
        "An upgrade step of another version of ipavolume was removed. One of your own belongs in "
        "/etc/ipavolume/upgrade_steps, with a number from 5000 to 8999."
    ),
    Code.REPLACED_BY_SCRIPTLET: (
        "A scriptlet replaces a listed file, which is a link to the volume. On a read-only root "
        "that fails; else what it writes is taken over each time. Have it write to the link's "
        "target ([scriptlets] substitute), or list the directory."
    ),
    Code.RPM_LEFTOVER: (
        "An upgrade of a package in a derived image left its new file beside the link, could not "
        "remove what it no longer has from the template, or put the package's file in the place of "
        "an edited one. Look whether the template should get it, lose it, or keep it."
    ),
    Code.RUNTIME_LISTED: (
        "Under systemd, and with a read-only root, what is in /run comes with each container and "
        "goes with it: a link there is never seen. List where the program keeps what lasts."
    ),
    Code.SAME_VERSION: (
        "A [[package]] has the version that it had when the image was prepared before, and other "
        "configuration files. Steps are chosen by versions, and people tell images by them: count "
        "its version up, or add a release (2.4.1-2)."
    ),
    Code.SHIPPED_DATABASE: (
        "A listed directory holds a database that was made while the image was built, as packages "
        "of Debian do when they are installed. Each volume begins with the same one, its accounts "
        "and keys included. At an upgrade the volume's files stay, and those that only the newer "
        "image's database has are put among them (MariaDB's undo logs, the mark that it was "
        "upgraded, an entry of slapd.d), which can damage it. Remove its content when the image is "
        "built, and have the first run make it ([first-run]). A volume that is there keeps its own."
    ),
    Code.SHIPPED_SECRET: (
        "A listed path holds a key, or the id of a machine, that was made while the image was "
        "built, as packages do when they are installed. Each volume begins with the same one, "
        "which everybody has who has the image. Remove it before prepare (empty a file that is "
        "listed itself), and have each volume get its own, by an upgrade step or the first run: "
        "ipavolume manual build has an example. What systemd copies to an empty /etc/machine-id "
        "counts without being listed: make /var/lib/dbus/machine-id a link to that. A volume that "
        "is there keeps what it has. A key that is meant for every volume is named in [files] "
        "refresh, or in config of a [[package]], by its path without a wildcard."
    ),
    Code.SINGLE_FILE: (
        "Listed files whose directories are not listed. Each is a link in a directory of the "
        "container: a program that writes another file and renames it (sed -i, install, many "
        "editors) replaces the link, and what it wrote ends with the container. What ipavolume "
        "runs itself is looked after; for what others run, list the directory, or have it write "
        "to the link's target. It never stops a build."
    ),
    Code.SPECIAL_FILE: (
        "A socket or a device in a listed path is left out: it is made by the program that uses it."
    ),
    Code.SUPERSEDED_UNIT: (
        "A unit has the name of one by which images of the freeipa-container project install or "
        "upgrade the server, and is not theirs, which prepare would take out. Give it another "
        "name, or mask it (a link to /dev/null) where it is to do nothing."
    ),
    Code.UNIT_ORDER: (
        "A unit waits for ipavolume in a way that waits for ever, or that systemd resolves by "
        "leaving a unit out. The message has what to write in its place."
    ),
    Code.UNKNOWN_GUARD: (
        "No package of the image has a guarded name or provides it, so nothing guards it. Where "
        "it is only in some images, write it with a question mark: guard = ['?name']."
    ),
    Code.UNKNOWN_UNIT: (
        "The image has no unit of a name that has to be active before the application is called "
        "ready, so it never is, unless something makes the unit at run time."
    ),
    Code.SNAPSHOT_NOT_SURE: (
        "[verify] has an upgrade that is not found to be right undone, for which there has to be a "
        "snapshot, and [snapshot] does not have one made each time. Where there is none, or not a "
        'complete one, it stays. Set before-upgrade = "always" there.'
    ),
    Code.UNSEEN_MARK: (
        "What the first run is judged by is on no volume, so it will not be there at the next "
        "start. List it."
    ),
    Code.UNUSED_CONFIG: (
        "A glob of [[package]] config matches no listed file. It is about the paths that the "
        "image has, and * matches a slash as well."
    ),
    Code.UNUSED_REFRESH: (
        "No listed file that is not a package's matches a glob of [files] refresh. It is about "
        "the paths that the image has, and * matches a slash as well."
    ),
    Code.UNUSED_SUBSTITUTION: (
        "A substitution is for a package that the image does not have, or for a text that none of "
        "its scriptlets has: nothing is replaced."
    ),
}
"""What each code means, and what to do."""

ERRORS: Final = frozenset(
    {
        Code.CONFIG_OWNED,
        Code.LIST_COMMENT,
        Code.LIST_GLOB,
        Code.NO_VERSION,
        Code.PACKAGE_OWNED,
        Code.PROGRAMS_LISTED,
        Code.SUPERSEDED_UNIT,
    }
)
"""What cannot work, and cannot be accepted."""
NOTES: Final = frozenset({Code.NOTHING_TO_EXECUTE, Code.PROFILE_FILES, Code.SINGLE_FILE})
"""What is good to know, and stops no build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a build found.

    Attributes:
        code: Its kind.
        message: What was found, a sentence without a full stop.
        path: The path in the image that it is about, or "".
        place: The line that says so, such as ``/etc/volume-data-list:3``, or "".
        hint: What to do, or "" where the message says it.
    """

    code: Code
    message: str
    path: str = ""
    place: str = ""
    hint: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is, whatever a strict build makes of it."""
        if self.code in ERRORS:
            return Severity.ERROR
        return Severity.NOTE if self.code in NOTES else Severity.WARNING

    def __str__(self) -> str:
        """Return place and message."""
        return f"{self.place}: {self.message}" if self.place else self.message


class UnfitImageError(ConfigurationError):
    """What was found in an image stops its build."""

    code = "findings"

    def __init__(self, findings: Iterable[Finding], refused: Iterable[Finding]) -> None:
        """Keep all *findings*, and those that stopped the build."""
        self.findings = tuple(findings)
        self.refused = tuple(refused)
        first = self.refused[0]
        strict = any(one.severity is Severity.WARNING for one in self.refused)
        if len(self.refused) == 1:
            message = str(first)
        else:
            codes = dict.fromkeys(one.code for one in self.refused)
            message = f"{len(self.refused)} findings stop this build: {', '.join(codes)}"
        hint = first.hint if len(self.refused) == 1 else ""
        super().__init__(
            message,
            hint=hint
            or (
                "Correct what was found (ipavolume manual CODE explains it); --accept CODE lets a "
                "build with --strict pass one."
                if strict
                else "Correct what was found (ipavolume manual CODE explains it), then run "
                "ipavolume prepare again."
            ),
            code=first.code if len(self.refused) == 1 else "",
            path=first.path if len(self.refused) == 1 else "",
        )


class Findings:
    """Collects what is found; equal findings count once."""

    def __init__(self, *, strict: bool = False, accepted: Collection[str] = ()) -> None:
        """Begin without any.

        Args:
            strict: Warnings stop the build as errors do.
            accepted: Codes of warnings that do not, all the same.

        Raises:
            UsageError: If one of *accepted* is no code, or that of an error.
        """
        for word in accepted:
            if word not in MEANINGS:
                raise UsageError(
                    f"{word!r} is no code of a finding of prepare",
                    hint=f"One of {', '.join(code for code in Code if code not in ERRORS)}.",
                )
            if word in ERRORS:
                raise UsageError(
                    f"{word!r} cannot be accepted: such an image cannot work",
                    hint=MEANINGS[Code(word)],
                )
        self._strict = strict
        self._accepted = frozenset(accepted)
        self._found: dict[Finding, None] = {}

    def add(
        self, code: Code, message: str, *, path: str = "", place: str = "", hint: str = ""
    ) -> None:
        """Note something; see :class:`Finding`."""
        self._found[Finding(code=code, message=message, path=path, place=place, hint=hint)] = None

    @property
    def found(self) -> tuple[Finding, ...]:
        """What was found so far."""
        return tuple(self._found)

    def settle(self) -> None:
        """End the build here if anything that was found stops it.

        Raises:
            UnfitImageError: If so.
        """
        refused = [
            one
            for one in self._found
            if one.severity is Severity.ERROR
            or (
                self._strict and one.severity is Severity.WARNING and one.code not in self._accepted
            )
        ]
        if refused:
            raise UnfitImageError(self._found, refused)
