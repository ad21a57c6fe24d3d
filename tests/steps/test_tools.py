"""What real tools do to a listed file whose directory is not listed (F22).

All of them run in one container, each as a command of its own; what a second container, with a
fresh layer, sees by the links is what lasts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from support import inside
from support.images import Image, Packaged, build_rpm
from support.requirements import need_tool
from support.taskworlds import World, step
from support.upgrades import acl, owner, set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

TOOLS: Final = ("certutil", "ed", "install", "kadmin.local", "ktutil", "sed", "vim.basic")

EDITS: Final = {
    "sed": "sed -i s/old/new/ /etc/sed.conf",
    "install": "sed s/old/new/ /etc/install.conf >/tmp/x; install -m 0640 -o 7 -g 8 /tmp/x "
    "/etc/install.conf",
    "ed": r"printf ',s/old/new/\nw\nq\n' | ed -s /etc/ed.conf",
    "vim": "vim.basic -es -u NONE -c %s/old/new/ -c wq /etc/vim.conf",
    "vim-renames": "vim.basic -es -u NONE -c 'set backupcopy=no' -c %s/old/new/ -c wq "
    "/etc/vim-renames.conf",
}
"""Each makes "new" of "old" in a file of its own."""

KERBEROS: Final = r"""
export KRB5_CONFIG=/tmp/krb5.conf KRB5_KDC_PROFILE=/tmp/kdc.conf
printf '[libdefaults]\ndefault_realm = X\n' >$KRB5_CONFIG
printf '[realms]\nX = {\ndatabase_name = /tmp/db\nkey_stash_file = /tmp/stash\n}\n' >/tmp/kdc.conf
addent() {
    { printf 'addent -password -p svc/a@X -k 1 -e aes256-cts-hmac-sha1-96\nsecret\n'
    printf "wkt $1\nq\n"; } | ktutil
}
kdc() { kdb5_util create -s -P secret; kadmin.local -q 'addprinc -randkey host/a'; }
"""
SECRETS: Final = {
    "ktutil": f"{KERBEROS}addent /etc/one.keytab",
    "kadmin.local": f"{KERBEROS}kdc; kadmin.local -q 'ktadd -k /etc/two.keytab host/a'",
    # What a listed file that is not there means to it: see the finding absent-file.
    "absent": f"{KERBEROS}addent /etc/absent.keytab",
    "certutil": "certutil -S -d sql:/etc/nss -n seen -s CN=seen -x -t CT,C,C -z /usr/bin/ed",
}
EMPTY_KEYTAB: Final = r"printf '\005\002'"
NSS: Final = ("cert9.db", "key4.db", "pkcs11.txt")
KEYTABS: Final = ("one.keytab", "two.keytab", "absent.keytab")


def body() -> str:
    """Return the body of a step that lets each tool work, those that fail as well."""
    begin = f"for f in one two; do {EMPTY_KEYTAB} >/data/etc/$f.keytab; done; umask 022"
    commands = [begin, "certutil -N -d sql:/data/etc/nss --empty-password", *EDITS.values()]
    commands += [f"{text} 2>&1" for text in SECRETS.values()]
    return "\n".join(
        f"yield Command(words=('bash', '-ec', {text!r}), reason='to see')" for text in commands
    )


def test_what_tools_write_to_a_listed_file_is_on_the_volume(tmp_path: Path) -> None:
    """F22: with the owner, mode and ACL that the tool left, and those before where it left them."""
    for tool in TOOLS:
        need_tool(tool)
    confs = [f"/etc/{name}.conf" for name in EDITS]
    packaged = [Packaged(path=path, content="old\n") for path in confs]
    rpms = {n: build_rpm(tmp_path, "svc", packaged, version=n) for n in ("1", "2")}
    lists = [*confs, *(f"/etc/{name}" for name in KEYTABS), *(f"/etc/nss/{name}" for name in NSS)]
    world = World(tmp_path, rpms, {"/data": lists})

    def edit(image: Image) -> None:
        (image.root / "etc/nss").mkdir()

    image = world.image("1", {}, edit=edit)
    world.run(image, "upgrade", "-q")
    etc = world.volume / "etc"
    for name in EDITS:
        path = etc / f"{name}.conf"
        path.chmod(0o604)
        os.chown(path, 5, 6)
        set_acl(path, "u:4242:rw")
    as_before = owner(etc / "sed.conf"), acl(etc / "sed.conf")
    image = world.image("2", {"s5000_tools": step(body())}, edit=edit)
    said = world.run(image, "upgrade").stdout
    for name in EDITS:
        path = etc / f"{name}.conf"
        assert path.read_text() == "new\n", name
        renames = name in {"sed", "install", "vim-renames"}
        assert (f"took the place of the link /etc/{name}.conf" in said) == renames, name
        if name == "install":
            assert (owner(path), len(acl(path))) == ((7, 8, 0o640), 3)
        else:
            assert (owner(path), acl(path)) == as_before, name
    assert not (etc / "absent.keytab").exists()
    # The next container has a layer of its own, and reads by the links.
    seen = inside.run(
        image.root,
        world.volume,
        [
            "sh",
            "-ec",
            "for k in one two; do klist -k /etc/$k.keytab; done; certutil -L -d /etc/nss",
        ],
    ).stdout
    for word in ("svc/a@X", "host/a@X", "seen  "):
        assert word in seen
