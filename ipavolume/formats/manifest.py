"""Manifests and baselines: what an image ships, as JSON Lines.

The first line is the header, then comes one record a path, sorted by the bytes of the
path. Records are written in one canonical form, so that two equal records are two equal
lines, and an upgrade in which little changed compares lines and parses almost none.
What is read is validated: a manifest may come from a volume or from a hostile image.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import fsencode
from typing import Any, BinaryIO, Final

from ipavolume.errors import ManifestError
from ipavolume.formats import checks
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY, FileFlags, FileType, Record
from ipavolume.model.images import Accounts, ImageHeader, TopLevel, VolumeSpec
from ipavolume.model.packages import Package, Provide
from ipavolume.model.progress import count_text

FORMAT: Final = 1
NEWER: Final = "newer-format"
"""Code of the error for a manifest that was made by a newer ipavolume."""
MAX_HEADER_BYTES: Final = 64 << 20
MAX_RECORD_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 17
"""How much is read at once of the records."""
IN_NO_LINE: Final = b"\n\n"
"""What none contains: for who remembers a part of the line before."""
_MAX_SIZE: Final = (1 << 63) - 1
MAX_PATH_CHARACTERS: Final = 4095
"""``PATH_MAX``: what else reads an image could not name anything longer."""
MAX_ID: Final = 0xFFFFFFFE
"""The one above it is -1, with which a call that changes owners leaves them as they are."""

_FLAG_WORDS: Final = (
    (FileFlags.CONFIG, "config"),
    (FileFlags.NOREPLACE, "noreplace"),
    (FileFlags.MISSINGOK, "missingok"),
    (FileFlags.GHOST, "ghost"),
)
_FLAGS_BY_WORD: Final = {word: flag for flag, word in _FLAG_WORDS}
_SHIPPED_TYPES: Final = {kind.value: kind for kind in FileType if kind is not FileType.OTHER}


def dump_record(record: Record) -> bytes:
    """Return the canonical line of *record*, newline included."""
    data: dict[str, object] = {"path": record.path}
    if record.type is FileType.FILE:
        data["size"] = record.size
        data["sha256"] = record.content
    elif record.type is FileType.SYMLINK:
        data["target"] = record.content
    data["type"] = record.type.value
    data["mode"] = f"{record.mode:04o}"
    data["owner"] = record.owner
    data["group"] = record.group
    data["uid"] = record.uid
    data["gid"] = record.gid
    if record.flags:
        data["flags"] = [word for flag, word in _FLAG_WORDS if record.flags & flag]
    if record.package:
        data["package"] = record.package
    if record.rpm_digest:
        data["rpm_digest"] = record.rpm_digest
    if record.xattrs:
        data["xattrs"] = {
            name: base64.b64encode(value).decode("ascii") for name, value in record.xattrs
        }
    if record.hard_link:
        data["hard_link"] = record.hard_link
    if not record.present:
        data["present"] = False
    if record.refresh:
        data["refresh"] = True
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


def is_safe_path(path: str) -> bool:
    """Tell whether *path* is absolute, normalised and free of ``..`` and NUL."""
    whole = path + "/"
    return (
        path.startswith("/")
        and "\0" not in path
        and "//" not in whole
        and "/./" not in whole
        and "/../" not in whole
    )


def path_below(mounts: Iterable[str]) -> Callable[[object], str]:
    """Return what reads a safe path that is below one of *mounts*, or refuses it as malformed."""
    below = tuple(mount + "/" for mount in mounts)

    def path(value: object) -> str:
        result = checks.text(value)
        if not is_safe_path(result) or not result.startswith(below):
            raise checks.wrong(value, "a path below a mount")
        return result

    return path


def check_place(path: str, mount: str) -> None:
    """Make sure that an image does not ship *path* where the state of the volume itself is.

    Raises:
        ManifestError: If it does.
    """
    top = path[len(mount) + 1 :].partition("/")[0]
    if top in (STATE_DIRECTORY, BUILD_ID_NAME):
        raise ManifestError(
            f"the manifest has {path!r}, where the state of the volume is",
            hint="Take it off the path list, and run ipavolume prepare in the image again.",
        )


def parse_record(line: bytes) -> Record:
    """Turn a line into a record.

    Raises:
        ManifestError: If the line is not a well-formed record.
    """
    match = _plain_file_pattern().fullmatch(line)
    if match is not None and (record := _plain_file(match)) is not None:
        return record
    try:
        data = checks.decode(line, "ascii")
        kind = _SHIPPED_TYPES[data["type"]]
        path = checks.name(data["path"])
        size = 0
        content = ""
        if kind is FileType.FILE:
            size = checks.count(data["size"], _MAX_SIZE)
            content = checks.name(data["sha256"])
        elif kind is FileType.SYMLINK:
            content = checks.name(data["target"])
        flags = FileFlags.NONE
        if "flags" in data:
            for word in data["flags"]:
                flags |= _FLAGS_BY_WORD[word]
        record = Record(
            path=path,
            type=kind,
            mode=checks.mode(data["mode"]),
            owner=checks.name(data["owner"]),
            group=checks.name(data["group"]),
            uid=owner_id(data["uid"]),
            gid=owner_id(data["gid"]),
            size=size,
            content=content,
            xattrs=checks.xattrs(data["xattrs"]) if "xattrs" in data else (),
            flags=flags,
            package=checks.name(data.get("package", "")),
            rpm_digest=checks.name(data.get("rpm_digest", "")),
            present=checks.flag(data.get("present", True)),
            hard_link=checks.name(data.get("hard_link", "")),
            refresh=checks.flag(data.get("refresh", False)),
        )
        if not (
            is_safe_path(path)
            and len(path) <= MAX_PATH_CHARACTERS
            and (record.hard_link == "" or is_safe_path(record.hard_link))
        ):
            raise ManifestError(f"malformed record of {path!r:.200} in the manifest")
    except (checks.MalformedError, KeyError, TypeError) as err:
        raise ManifestError(f"malformed record in the manifest: {line[:80]!r}") from err
    return record


@functools.cache
def _plain_file_pattern() -> re.Pattern[bytes]:
    """Return the canonical line of a file without anything special: nearly every line.

    Most runs parse none, or few, and to compile this takes as long as to parse a hundred.
    """
    return re.compile(
        rb'\{"path":"([^"\\]+)","size":([0-9]{1,18}),"sha256":"([0-9a-f]{64})","type":"file",'
        rb'"mode":"([0-7]{4})","owner":"([^"\\]+)","group":"([^"\\]+)","uid":([0-9]{1,9}),'
        rb'"gid":([0-9]{1,9})(?:,"flags":\["(config|config","noreplace)"\])?'
        rb'(?:,"package":"([^"\\]+)")?\}\n'
    )


def _plain_file(match: re.Match[bytes]) -> Record | None:
    path, size, digest, mode, owner, group, uid, gid, flags, package = match.groups()
    name = path.decode("ascii", "replace")
    if not is_safe_path(name) or not path.isascii() or len(name) > MAX_PATH_CHARACTERS:
        return None
    return Record(
        path=name,
        type=FileType.FILE,
        mode=int(mode, 8),
        owner=owner.decode("ascii", "replace"),
        group=group.decode("ascii", "replace"),
        uid=int(uid),
        gid=int(gid),
        size=int(size),
        content=digest.decode("ascii"),
        flags=_PLAIN_FLAGS[flags],
        package=package.decode("ascii", "replace") if package else "",
    )


_PLAIN_FLAGS: Final = {
    None: FileFlags.NONE,
    b"config": FileFlags.CONFIG,
    b'config","noreplace': FileFlags.CONFIG | FileFlags.NOREPLACE,
}


def dump_header(header: ImageHeader) -> bytes:
    """Return the line of *header*, newline included."""
    data = {
        "format": FORMAT,
        "build_id": header.build_id,
        "image_name": header.image_name,
        "created": header.created,
        "os": {"id": header.os_id, "version_id": header.os_version},
        "fingerprint": header.fingerprint,
        "packages": [
            {
                "name": package.name,
                "epoch": package.epoch,
                "version": package.version,
                "release": package.release,
                "arch": package.arch,
                "provides": [[provide.name, provide.evr] for provide in package.provides],
            }
            for package in header.packages
        ],
        "accounts": {
            "users": dict(sorted(header.accounts.users.items())),
            "groups": dict(sorted(header.accounts.groups.items())),
        },
        "volumes": [
            {
                "mount": volume.mount,
                "template": volume.template,
                "volatile": volume.volatile,
                "entries": list(volume.entries),
                **({"profile": list(volume.profile)} if volume.profile else {}),
                **({} if volume.top is None else {"top": [_top_data(one) for one in volume.top]}),
            }
            for volume in header.volumes
        ],
        "links": [list(link) for link in header.links],
        **({"units": list(header.units)} if header.units else {}),
        "records": header.records,
        "records_digest": header.records_digest,
        **({"application": header.application} if header.application else {}),
        **({} if header.owning is None else {"owning": [list(one) for one in header.owning]}),
    }
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


@functools.lru_cache(maxsize=4)
def parse_header(line: bytes) -> ImageHeader:
    """Turn the first line of a manifest into a header.

    A run reads those of the image and of the baseline some ten times.

    Raises:
        ManifestError: If it is not a header of a known format.
    """
    try:
        data = checks.decode(line)
        if checks.is_newer(data, FORMAT):
            raise ManifestError(
                f"the manifest has format {data['format']} and was made by a newer ipavolume; "
                f"this one knows {FORMAT}",
                code=NEWER,
                hint="Use the ipavolume of the image that wrote it, or a newer one.",
            )
        header = ImageHeader(
            build_id=checks.name(data["build_id"]),
            image_name=checks.name(data["image_name"]),
            created=checks.name(data["created"]),
            os_id=checks.name(data["os"]["id"]),
            os_version=checks.name(data["os"]["version_id"]),
            fingerprint=checks.name(data["fingerprint"]),
            packages=checks.items(
                data["packages"],
                checks.loader(Package, {str: checks.name, "provides": _provides}),
            ),
            accounts=Accounts(
                users=owner_ids(data["accounts"]["users"]),
                groups=owner_ids(data["accounts"]["groups"]),
            ),
            volumes=checks.items(data["volumes"], _volume),
            links=checks.pairs(data["links"]),
            units=checks.items(data.get("units", []), checks.name),
            records=checks.count(data["records"]),
            records_digest=checks.name(data["records_digest"]),
            application=checks.name(data.get("application", "")),
            owning=checks.items(data["owning"], _owning) if "owning" in data else None,
        )
    except checks.MalformedError as err:
        raise ManifestError(
            f"the header of the manifest is not one: {err}",
            hint="Run ipavolume prepare in the image again.",
        ) from err
    except (KeyError, TypeError, AttributeError) as err:
        raise ManifestError(
            "the first line of the manifest is not a header",
            hint="Run ipavolume prepare in the image again.",
        ) from err
    return header


def owner_id(value: object) -> int:
    """Return the number of a user or a group, or refuse it as malformed."""
    return checks.count(value, MAX_ID)


def owner_ids(value: object) -> dict[str, int]:
    """Return the numbers of users or groups by their names, or refuse them as malformed."""
    return {checks.name(name): owner_id(number) for name, number in checks.table(value).items()}


def _provides(value: object) -> tuple[Provide, ...]:
    return tuple([Provide(name=name, evr=evr) for name, evr in checks.pairs(value)])


def _volume(item: Mapping[str, Any]) -> VolumeSpec:
    spec = VolumeSpec(
        mount=checks.name(item["mount"]),
        template=checks.name(item["template"]),
        volatile=checks.flag(item["volatile"]),
        entries=checks.items(item["entries"], checks.name),
        profile=checks.items(item.get("profile", []), checks.name),
        top=None if "top" not in item else checks.items(item["top"], _top),
    )
    tops = [one.path for one in spec.top or ()]
    for path in (spec.mount, spec.template, *tops):
        if not is_safe_path(path):
            raise ManifestError(f"the header of the manifest names the unusable path {path!r}")
    for path in tops:
        check_place(path, spec.mount)
        if path.rpartition("/")[0] != spec.mount:
            raise ManifestError(f"the header of the manifest has {path!r} right below {spec.mount}")
    return spec


def _owning(value: object) -> tuple[str, bool]:
    name, is_other = checks.row(value, checks.name, checks.flag)
    return name, is_other


def _top_data(top: TopLevel) -> list[object]:
    return [top.path, top.is_directory, top.entries, top.bytes]


def _top(value: object) -> TopLevel:
    path, is_directory, entries, size = checks.row(
        value, checks.name, checks.flag, checks.count, checks.count
    )
    return TopLevel(path=path, is_directory=is_directory, entries=entries, bytes=size)


def read_header(stream: BinaryIO) -> ImageHeader:
    """Read the first line of *stream*, which must be at its beginning.

    Raises:
        ManifestError: If it is not a header.
    """
    line = stream.readline(MAX_HEADER_BYTES)
    if not line.endswith(b"\n"):
        raise ManifestError(
            "the manifest is cut short or empty",
            hint="Run ipavolume prepare in the image again.",
        )
    return parse_header(line)


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the record lines of *stream*, which must be just behind the header.

    Raises:
        ManifestError: If a line is longer than a record can be or has no end.
    """
    return itertools.chain.from_iterable(read_chunks(stream))


def read_chunks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Yield what :func:`read_lines` does in lists, for whoever closes the stream behind the last.

    A generator that yields each line again takes more time than all else that is done to read it.
    """
    rest = b""
    while chunk := stream.read(_CHUNK_BYTES):
        lines = io.BytesIO(rest + chunk).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        # Only the first can be longer than a chunk: the rest of those before is in it.
        if len(rest) > MAX_RECORD_BYTES or (lines and len(lines[0]) > MAX_RECORD_BYTES):
            break
        yield lines
    if rest or chunk:
        raise ManifestError("the manifest is cut short or has a line that is too long")


def read_records(stream: BinaryIO) -> Iterator[Record]:
    """Yield the records of *stream*, which must be just behind the header."""
    for line in read_lines(stream):
        yield parse_record(line)


def path_of(line: bytes) -> str:
    """Return the path of a record line, without parsing the rest where it can be avoided.

    Raises:
        ManifestError: If the line is not a record.
    """
    plain = _PLAIN_KEY.match(line)
    return parse_record(line).path if plain is None else plain[1].decode("ascii")


def key_of(line: bytes) -> bytes:
    """Return the bytes of the path of a record line, by which records are sorted.

    Raises:
        ManifestError: If the line is not a record.
    """
    plain = _PLAIN_KEY.match(line)
    return fsencode(parse_record(line).path) if plain is None else plain[1]


_PLAIN_KEY: Final = re.compile(rb'\{"path":"((?:/[^./"\\\x00\x80-\xff][^/"\\\x00\x80-\xff]*)+)"')
"""For such a path nothing has to be parsed. A component that begins with a dot is rare, and could
be ``..``."""


def records_hash() -> hashlib.blake2b:
    """Return a fresh hash for the bytes of the record lines (BLAKE2b: thrice SHA-256's speed)."""
    return hashlib.blake2b(digest_size=32)


def verify(stream: BinaryIO, header: ImageHeader, *, places: bool = False) -> None:
    """Check the bytes behind the header against count and digest in the header.

    The stream must be just behind the header and is read to its end.

    Args:
        stream: Where they are read from.
        header: The header.
        places: Also make sure that every path lies below a volume of the header; nothing is
            parsed for it.

    Raises:
        ManifestError: If they differ: cut short, or altered.
    """
    digest = records_hash()
    lines = 0
    mounts = [volume.mount for volume in header.volumes] if places else []
    starts = [_Occurrences(b'\n{"path":' + _quoted(mount + "/")[:-1]) for mount in mounts]
    # A file that goes on and on, as a hole of many terabytes, is not read to its end.
    while lines <= header.records and (chunk := stream.read(MAX_RECORD_BYTES)):
        digest.update(chunk)
        for start in starts:
            start.add(chunk)
        found = chunk.count(b"\n")
        lines += found
        if not found and len(chunk) == MAX_RECORD_BYTES:
            break
    if lines != header.records or digest.hexdigest() != header.records_digest:
        raise ManifestError(
            f"the manifest of {header.build_id!r} is cut short or was altered: "
            f"{lines} of {count_text(header.records, 'record')}"
        )
    if places and sum(start.count for start in starts) != lines:
        raise ManifestError(
            f"the manifest of {header.build_id!r} has paths on none of its volumes, which are "
            + ", ".join(mounts),
            hint="Run ipavolume prepare in the image again.",
        )


def _quoted(text: str) -> bytes:
    return json.dumps(text).encode("ascii")


class _Occurrences:
    """Counts certain bytes in a stream that comes in chunks."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        self._overlap = len(wanted) - 1
        self._last = b"\n"
        self.count = 0

    def add(self, chunk: bytes) -> None:
        # What begins in one chunk and ends in the next is looked for at the seam.
        seam = self._last + chunk[: self._overlap]
        self.count += seam.count(self._wanted) + chunk.count(self._wanted)
        last = chunk[-self._overlap :]
        self._last = last if len(last) == self._overlap else (self._last + last)[-self._overlap :]


def pair(
    old: Iterable[bytes], new: Iterable[bytes]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Merge two sorted streams of record lines by path.

    Yields:
        The bytes of the path with its old and its new line, either of which may be ``None``.

    Raises:
        ManifestError: If a stream is not sorted.
    """
    old_lines, new_lines = iter(old), iter(new)
    old_line, new_line = next(old_lines, None), next(new_lines, None)
    previous = b""
    while old_line is not None or new_line is not None:
        old_key = new_key = _BEHIND_ALL if old_line is None else key_of(old_line)
        if new_line != old_line:
            new_key = _BEHIND_ALL if new_line is None else key_of(new_line)
        key = min(old_key, new_key)
        if key <= previous:
            raise ManifestError(f"the manifest is not sorted at {key!r}")
        previous = key
        is_old, is_new = old_key == key, new_key == key
        yield key, old_line if is_old else None, new_line if is_new else None
        if is_old:
            old_line = next(old_lines, None)
        if is_new:
            new_line = next(new_lines, None)


_BEHIND_ALL: Final = b"\xff"
"""Every path begins with a slash."""


def fingerprint(
    records: Iterable[Record], packages: Iterable[Package], parts: Iterable[tuple[str, bytes]]
) -> str:
    """Return the SHA-256 of what matters to a volume; a rebuild without change keeps it.

    The content of ghosts and of files that no package owns and that are never refreshed
    does not count (keys and logs made while the image was built differ each time), and
    no time does.

    Args:
        records: The records of the image in their order.
        packages: The installed packages in their order.
        parts: Name and bytes of everything else that counts: configuration, steps.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(_fingerprint_line(record))
    for package in packages:
        digest.update(f"{package.name} {package.evr} {package.arch}\n".encode())
    for name, data in parts:
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()


def _fingerprint_line(record: Record) -> bytes:
    volatile = record.flags & FileFlags.GHOST or (not record.package and not record.refresh)
    if volatile and record.type is FileType.FILE:
        from dataclasses import replace

        return dump_record(replace(record, size=0, content=""))
    return dump_record(record)
