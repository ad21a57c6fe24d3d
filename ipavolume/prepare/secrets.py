"""Secrets that were made while the image was built, in listed paths.

Packages make keys when they are installed, and every volume would begin with the same ones. What
is looked for are private keys in a form that says so, and files that only a certain program makes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase, translate
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.linux.trees import walk
from ipavolume.model.files import FileFlags
from ipavolume.model.paths import is_within
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.globs import is_pattern, matches
from ipavolume.prepare.packages import PackageFacts
from ipavolume.prepare.pathlists import content
from ipavolume.prepare.placement import Placement

NAMES: Final = {
    ".erlang.cookie": "Erlang's cookie",
    "credential.secret": "systemd's key for credentials",
    "dropbear_*_host_key": "a host key of Dropbear",
    "munge.key": "MUNGE's key",
    "random-seed": "a seed for random numbers",
    "secrets.tdb": "Samba's secrets",
}
"""Files that only a certain program makes, and that are a secret whatever is in them.

Sources: Erlang, "Distributed Erlang"; ``systemd-creds(1)``; ``dropbear(8)``; ``munged(8)``;
``systemd-random-seed.service(8)``; Samba ``source3/passdb/secrets.c``.
"""
_NAMED: Final = re.compile("|".join(map(translate, NAMES)))
_KEYTABS: Final = ("*keytab", "*keytab[._-]*", "m-key", "stash", ".k5.*")
_MACHINE_ID: Final = "machine-id"
_ID_PATH: Final = "/etc/machine-id"
_ID_OF_DBUS: Final = "/var/lib/dbus/machine-id"
"""From which systemd takes the one of a machine that has none yet (``machine-id(5)``)."""
_BIND: Final = ("*.key", "rndc.conf")
_PKCS12: Final = ("*.p12", "*.pfx")
_INITIATOR: Final = "initiatorname.iscsi"
_PASSWORDS: Final = ("*passwd", "passwd-", "htpasswd[.-]*", "shadow", "shadow-", "gshadow*")
_ALONE: Final = ("*.key", "*.priv", "*.private", "*private*key*")
"""Files in which there may be nothing but the key, as ``wg(8)`` makes them."""
_LIKE_A_KEY: Final = (
    *("*.key", "*.pem", "*.priv", "*.private", "*_key", "id_*", "*private*key*"),
    *("*.der", "*.p8", "*.pk8", "*.jwk", "*.jwks", "wg*.conf", "*.netdev"),
)
_WANTED: Final = re.compile(
    "|".join(
        map(
            translate,
            (*NAMES, _MACHINE_ID, _INITIATOR, *_KEYTABS, *_BIND, *_PASSWORDS, *_LIKE_A_KEY),
        )
    )
)
"""The names that are looked into though everybody may read the file."""

_MAX_BYTES: Final = 1 << 16
"""A key is smaller, also one that lies behind its chain of certificates."""

_PEM: Final = re.compile(
    rb"^-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t\r]*\n"
    # Headers, as of what is encrypted, and the empty line behind them.
    rb"(?:[A-Za-z-]+: [^\n]*\n|[ \t\r]*\n)*"
    rb"[A-Za-z0-9+/=]{16}",
    re.MULTILINE,
)
_OPENVPN: Final = re.compile(
    rb"^-----BEGIN OpenVPN [A-Za-z0-9 -]+ key[A-Za-z0-9 ]*-----[ \t\r]*\n[A-Za-z0-9+/=]{16}",
    re.MULTILINE,
)
_BIND_KEY: Final = re.compile(
    rb'^[ \t]*key[ \t]+"?[^\s"{]+"?[ \t]*\{[^}]{0,1000}\bsecret[ \t]+"?[A-Za-z0-9+/=]{8}',
    re.MULTILINE,
)
_SET_MACHINE_ID: Final = re.compile(rb"(?!0{32})[0-9a-f]{32}\s*")
_GNUPG: Final = re.compile(
    # The key alone, or as one of several lines: gpg-agent(1) puts before it when it was made.
    rb"\A\((?:\d+:)?(?:protected-)?private-key|^Key: \((?:protected-)?private-key",
    re.MULTILINE,
)
_AGE: Final = re.compile(rb"(?:#[^\n]*\n|[ \t\r]*\n)*AGE-SECRET-KEY-1[0-9A-Z]{16}")
_WIREGUARD: Final = re.compile(
    rb"^[ \t]*PrivateKey[ \t]*=[ \t]*[A-Za-z0-9+/]{43}=[ \t\r]*$", re.IGNORECASE | re.MULTILINE
)
_OF_32_BYTES: Final = re.compile(rb"[A-Za-z0-9+/]{43}=\s*")
_JWK: Final = re.compile(rb'"[dk]"\s*:\s*"[A-Za-z0-9_-]{16}')
_IN_JSON: Final = re.compile(
    # As of services of Google, and of what Traefik has of an authority.
    rb'"private_?key"\s*:\s*"(?:-----BEGIN [A-Z ]*PRIVATE KEY-----|MII)[A-Za-z0-9+/=\\]',
    re.IGNORECASE,
)
_DER: Final = re.compile(
    # The version, then in PKCS #8 the algorithm, in PKCS #1 a modulus, in SEC 1 the key.
    rb"\x02\x01(?:[\x00\x01]\x30.\x06|\x00\x02[\x40-\x7f\x81\x82]|\x01\x04[\x10-\x7f\x81])"
    # One that is encrypted by a password, PKCS #5 or #12.
    rb"|\x30.\x06.\x2a\x86\x48\x86\xf7\x0d\x01(?:\x05|\x0c\x01)",
    re.DOTALL,
)
_HASH: Final = re.compile(
    rb"^[^:\s#]+:(?:\{[A-Z0-9-]{3,20}\})?(?:\$[0-9a-z]{1,8}\$[^:\s]{12}|(?<=\})[A-Za-z0-9+/=]{24})",
    re.MULTILINE,
)
"""Of ``crypt(5)``, ``htpasswd(1)`` and directories: which account, how, and the hash."""
_INITIATOR_NAME: Final = re.compile(rb"^InitiatorName=\S", re.MULTILINE)
_BEGINNINGS: Final = {
    b"== ed25519v1-secret: ": "a private key of Tor",
    b"Private-key-format: v": "a private key of DNSSEC, or for signed updates",
    b"PuTTY-User-Key-File-": "a private key",
}

_MAX_NAMED: Final = 5


def secret_of(path: str, data: bytes, *, private: bool) -> str:
    """Return what secret a file is that is called *path* and begins with *data*, or "".

    Args:
        path: Its path, of which the name counts.
        data: Its content, as much as there is or ``_MAX_BYTES`` of it.
        private: Others may not read it.
    """
    name = path.rpartition("/")[2]
    if not data:
        return ""
    if known := _named(name):
        return known
    if name == _MACHINE_ID:
        return "the id of a machine" if _SET_MACHINE_ID.fullmatch(data) else ""
    if name == _INITIATOR:
        return "the name of an iSCSI initiator" if _INITIATOR_NAME.search(data) else ""
    # Version 1 or 2 of the format, and a first key: a keytab without any is these two bytes.
    if data[:2] in (b"\5\1", b"\5\2") and _is_like(name, _KEYTABS):
        return "keys of Kerberos" if len(data) > len(b"\5\2") else ""
    if private and data[:1] == b"\x30" and _is_like(name, _PKCS12):
        return "keys in PKCS #12"
    if data[:1] == b"\x30" and _is_der_key(data):
        return "a private key"
    if b"-----BEGIN " in data and (_PEM.search(data) or _OPENVPN.search(data)):
        return "a private key"
    if b"secret" in data and _is_like(name, _BIND) and _BIND_KEY.search(data):
        return "a key of BIND"
    if _GNUPG.search(data):
        return "a private key of GnuPG"
    if _AGE.match(data):
        return "a private key of age"
    if _IN_JSON.search(data) or (b'"kty"' in data and _JWK.search(data)):
        return "a private key"
    if _WIREGUARD.search(data):
        return "a private key of WireGuard"
    if "pub" not in name and _is_like(name, _ALONE) and _OF_32_BYTES.fullmatch(data):
        return "a private key"
    if _is_like(name, _PASSWORDS) and _HASH.search(data):
        return "the hash of a password"
    return next((what for begin, what in _BEGINNINGS.items() if data.startswith(begin)), "")


def check(
    tree: ImageTree,
    placements: Sequence[Placement],
    templates: Mapping[str, str],
    facts: PackageFacts,
    *,
    meant: Sequence[str],
    findings: Findings,
) -> None:
    """Warn of those that volumes would begin with, before anything is moved.

    A secret of a volatile volume is each container's. What a package ships for everybody to read
    is none, and a path that the configuration names itself, without a wildcard, is meant.

    Args:
        tree: The image.
        placements: Where entries are, and go.
        templates: Locations of the templates by mount.
        facts: What packages own.
        meant: Globs of the configuration for files that are the image's.
        findings: Takes what is found.
    """
    named = [glob for glob in meant if not is_pattern(glob)]
    places = {one.location for one in placements if not one.covered}
    for placement in placements:
        mount = placement.volume.mount
        if placement.covered or placement.volume.volatile:
            continue
        top = placement.location
        if placement.linked or tree.lstat(top) is None:
            top = templates[mount] + placement.place
        found: dict[str, list[tuple[str, str]]] = {}
        for path, st, what in _secrets(tree, top, content(tree, placement, templates), places):
            target = placement.target + path
            packaged = facts.files.get(target)
            ships = packaged is not None and not packaged.file.flags & FileFlags.GHOST
            if ships and not _is_private(st):
                continue
            if any(matches(target, mount, glob) for glob in named):
                continue
            directory, _, name = path.rpartition("/")
            found.setdefault(directory, []).append((name, what))
        for directory, secrets in found.items():
            _tell(placement.path, top, directory, secrets, findings)
    _check_id_of_dbus(tree, placements, findings)


def _check_id_of_dbus(tree: ImageTree, placements: Sequence[Placement], findings: Findings) -> None:
    """Look at what a machine's id is made from, where that id is kept and this is not."""
    kept = [one for one in placements if not (one.covered or one.volume.volatile)]
    try:
        location = tree.resolve(_ID_OF_DBUS, follow=False)
    except ConfigurationError:
        return
    # Where a listed directory is a link already, in a derived image, it is in the template.
    if any(is_within(location, one.location) or is_within(_ID_OF_DBUS, one.path) for one in kept):
        return
    if not any(is_within(_ID_PATH, path) for one in kept for path in (one.path, one.location)):
        return
    for _, _, what in _secrets(tree, location, tree.lstat(location), ()):
        findings.add(
            Code.SHIPPED_SECRET,
            f"{_ID_OF_DBUS!r} was made while the image was built ({what}), and systemd takes it "
            f"for {_ID_PATH!r} where that is empty: every volume gets the same one. Make it a "
            f"link to that before prepare (ipavolume manual {Code.SHIPPED_SECRET})",
            path=_ID_OF_DBUS,
        )


def _tell(
    listed: str,
    top: str,
    directory: str,
    secrets: Sequence[tuple[str, str]],
    findings: Findings,
) -> None:
    """Name the *secrets* of a directory: one finding, however many there are."""
    name, what = secrets[0]
    # A listed file has no name below itself.
    path, where = listed + directory, top + directory
    if len(secrets) == 1:
        path, where = (f"{path}/{name}", f"{where}/{name}") if name else (path, where)
        text = f"{path!r} is a secret that was made while the image was built ({what}): every "
        text += "volume begins with the same one"
    else:
        names = "; ".join(f"{name!r}, {what}" for name, what in secrets[:_MAX_NAMED])
        more = f"; {len(secrets) - _MAX_NAMED} more" if len(secrets) > _MAX_NAMED else ""
        text = f"{path!r} holds secrets that were made while the image was built ({names}{more}): "
        text += "every volume begins with the same ones"
    do = "Remove" if name else "Empty"
    they = "it" if len(secrets) == 1 else "them"
    at = "" if where == path else f" at {where!r}"
    findings.add(
        Code.SHIPPED_SECRET,
        f"{text}. {do} {they}{at} before prepare, and have each volume get its own "
        f"(ipavolume manual {Code.SHIPPED_SECRET})",
        path=path,
    )


def _secrets(
    tree: ImageTree, top: str, st: os.stat_result | None, places: Collection[str]
) -> Iterator[tuple[str, os.stat_result, str]]:
    """Yield the secrets at and below *top*: path from there, what ``lstat`` says, and what it is.

    Args:
        tree: The image.
        top: Where the entry is.
        st: What ``lstat`` says of it.
        places: Where other entries are.
    """
    if st is None:
        return
    with reported(f"look for secrets in {top!r}"):
        above, _, name = top.rpartition("/")
        fd = tree.open_directory(top if stat.S_ISDIR(st.st_mode) else above)
        try:
            if not stat.S_ISDIR(st.st_mode):
                if what := _look(fd, name, st):
                    yield "", st, what
                return
            for visit in walk(fd, skip=lambda path: f"{top}/{path}" in places):
                if what := "" if visit.leaving else _look(visit.directory, visit.name, visit.st):
                    yield f"/{visit.path}", visit.st, what
        finally:
            os.close(fd)


def _look(directory: int, name: str, st: os.stat_result) -> str:
    """Return what secret *name* in an open directory is, or ""; what cannot be one is not read."""
    if not (stat.S_ISREG(st.st_mode) and st.st_size):
        return ""
    private = _is_private(st)
    if not (private or _WANTED.match(name)):
        return ""
    if known := _named(name):
        return known
    if st.st_size > _MAX_BYTES:
        return ""
    fd = files.open_regular(directory, name)
    if fd is None:
        return ""
    try:
        return secret_of(name, os.read(fd, min(st.st_size, _MAX_BYTES)), private=private)
    finally:
        os.close(fd)


def _is_private(st: os.stat_result) -> bool:
    return not st.st_mode & stat.S_IROTH


def _is_der_key(data: bytes) -> bool:
    """Tell whether a sequence of ASN.1 that is all of the file is a private key.

    A certificate, a request, a list and a public key begin with no version, and a store with
    another one. Sources: RFC 5208, 8017 (A.1.2) and 5915.
    """
    more = data[1] & 0x7F if len(data) > 1 and data[1] & 0x80 else 0
    begin = 2 + more
    size = int.from_bytes(data[2:begin], "big") if more else data[1] if len(data) > 1 else 0
    return begin + size == len(data) and _DER.match(data, begin) is not None


def _named(name: str) -> str:
    if not _NAMED.match(name):
        return ""
    return next(what for glob, what in NAMES.items() if fnmatchcase(name, glob))


def _is_like(name: str, globs: Collection[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
