"""Secrets that were made while an image was built: which they are, and what a build says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import run_ipavolume
from support.images import Image, Packaged, build_rpm, make_image, picture

from ipavolume.prepare.findings import NOTES, UnfitImageError
from ipavolume.prepare.secrets import secret_of

LINE = "q" * 64
"""Of a key; it is none."""


def pem(kind: str, *headers: str) -> str:
    return "\n".join([f"-----BEGIN {kind}-----", *headers, LINE, LINE, f"-----END {kind}-----", ""])


KEY = pem("PRIVATE KEY")
CERTIFICATE = pem("CERTIFICATE")
OF_32 = f"{'q' * 42}g="
OID = "\x06\x03\x2b\x65\x70"
"""Of an algorithm."""
SHA512 = f"root:$6$salt${'q' * 86}"


def der(content: str) -> str:
    """Return *content* as a sequence of ASN.1."""
    return f"\x30\x81{chr(len(content))}{content}"


BIND = 'key "rndc-key" {\n\talgorithm hmac-sha256;\n\tsecret "qqqqqqqqqqqq";\n};\n'


@pytest.mark.parametrize(
    ("path", "text", "secret"),
    [
        ("etc/ssh/ssh_host_rsa_key", pem("OPENSSH PRIVATE KEY"), "a private key"),
        ("etc/pki/tls/private/localhost.key", KEY, "a private key"),
        ("etc/pki/dovecot/dovecot.pem", CERTIFICATE + KEY, "a private key"),
        ("var/lib/app/without-a-word", pem("EC PRIVATE KEY"), "a private key"),
        ("key.pem", pem("EC PARAMETERS") + pem("EC PRIVATE KEY"), "a private key"),
        ("key.pem", pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED", ""), "a private key"),
        ("key.pem", KEY.replace("\n", "\r\n"), "a private key"),
        ("secret.asc", pem("PGP PRIVATE KEY BLOCK", ""), "a private key"),
        ("ta.key", pem("OpenVPN Static key V1"), "a private key"),
        ("id", "PuTTY-User-Key-File-3: ssh-rsa\n", "a private key"),
        ("private-keys-v1.d/1.key", "(21:protected-private-key(3:rsa", "a private key of GnuPG"),
        ("private-keys-v1.d/1.key", "Key: (private-key (rsa", "a private key of GnuPG"),
        (
            "private-keys-v1.d/1.key",
            "Created: 20261130T230926\nKey: (private-key (ecc (curve Ed25519)",
            "a private key of GnuPG",
        ),
        (
            "key.txt",
            f"# created: 2026-11-30T23:09:26Z\n# public key: age1q\nAGE-SECRET-KEY-1{'Q' * 58}\n",
            "a private key of age",
        ),
        ("etc/rndc.key", BIND, "a key of BIND"),
        (
            "Kexample.test.+008+12345.private",
            "Private-key-format: v1.3\nAlgorithm: 8 (RSASHA256)\n",
            "a private key of DNSSEC, or for signed updates",
        ),
        ("etc/krb5.keytab", "\5\2\0\0\0\1", "keys of Kerberos"),
        ("var/kerberos/krb5kdc/.k5.EXAMPLE.TEST", "\5\2\0\0\0\1", "keys of Kerberos"),
        ("etc/krb5kdc/stash", "\5\2\0\0\0\1", "keys of Kerberos"),
        ("etc/machine-id", "0123456789abcdef" * 2 + "\n", "the id of a machine"),
        ("var/lib/rabbitmq/.erlang.cookie", "QQQQ", "Erlang's cookie"),
        ("var/lib/systemd/random-seed", "x", "a seed for random numbers"),
        ("etc/dropbear/dropbear_rsa_host_key", "\0\0\0\7ssh-rsa", "a host key of Dropbear"),
        ("cacert.p12", "\x30\x42", "keys in PKCS #12"),
        ("tls.key", der(f"\x02\x01\0\x30\x05{OID}\x04\x20{'q' * 80}"), "a private key"),
        ("tls.der", der(f"\x02\x01\0\x02\x81\x60{'q' * 96}"), "a private key"),
        ("tls.der", der(f"\x02\x01\1\x04\x60{'q' * 96}"), "a private key"),
        (
            "encrypted",
            der(f"\x30\x57\x06\x09\x2a\x86\x48\x86\xf7\x0d\1\5\x0d{'q' * 80}"),
            "a private key",
        ),
        (
            "etc/wireguard/wg0.conf",
            f"[Interface]\nPrivateKey = {OF_32}\n",
            "a private key of WireGuard",
        ),
        ("wg0.netdev", f"[WireGuard]\nPrivateKey={OF_32}\r\n", "a private key of WireGuard"),
        ("etc/wireguard/privatekey", f"{OF_32}\n", "a private key"),
        (
            "var/db/tang/1.jwk",
            '{"kty": "EC", "x": "q", "d": "qqqqqqqqqqqqqqqqqq"}',
            "a private key",
        ),
        ("private_key.json", '{"d":"qqqqqqqqqqqqqqqqqq","e":"AQAB","kty":"RSA"}', "a private key"),
        ("acme.json", '\n{"PrivateKey": "MIIqqqqq"}', "a private key"),
        (
            "account.json",
            r'{"private_key": "-----BEGIN PRIVATE KEY-----\nqqqq"}',
            "a private key",
        ),
        ("hs_ed25519_secret_key", "== ed25519v1-secret: type0 ==\0\0\0q", "a private key of Tor"),
        (
            "etc/iscsi/initiatorname.iscsi",
            "## DO NOT EDIT\nInitiatorName=iqn.1993-08.org.debian:01:q\n",
            "the name of an iSCSI initiator",
        ),
        ("etc/shadow", f"daemon:*:1:0:9:7:::\n{SHA512}:1:0:9:7:::\n", "the hash of a password"),
        (
            "etc/nginx/.htpasswd",
            "a:$apr1$qqqqqqqq$qqqqqqqqqqqqqqqqqqqqqq\n",
            "the hash of a password",
        ),
        ("htpasswd.users", "a:{SHA}qqqqqqqqqqqqqqqqqqqqqqqqqqq=\n", "the hash of a password"),
        # What is none: public halves, talk of keys, files that say that there is none yet.
        ("etc/ssh/ssh_host_rsa_key.pub", "ssh-rsa qqqq root@build\n", ""),
        ("server.pem", CERTIFICATE, ""),
        # A certificate, a request, a public key and one of RSA.
        ("tls.der", der(f"\x30\x60\xa0\3\2\1\2{'q' * 80}"), ""),
        ("tls.der", der(f"\x30\x60\2\1\0\x30\x0c{'q' * 80}"), ""),
        ("tls.der", der(f"\x30\x05{OID}\3\x21\0{'q' * 32}"), ""),
        ("tls.der", der(f"\2\x81\x60{'q' * 96}\2\3\1\0\1"), ""),
        ("tls.der", der(f"\2\1\0\x30\x05{OID}{'q' * 80}") + "and more", ""),
        ("short.der", "\x30", ""),
        ("short.der", "\x30\x82", ""),
        ("wg0.conf", f"[Peer]\nPublicKey = {OF_32}\n# PrivateKey = {OF_32}\n", ""),
        ("wg0.conf", "[Interface]\nPrivateKey = %private-key%\n", ""),
        ("wg-public.key", f"{OF_32}\n", ""),
        ("checksum", f"{OF_32}\n", ""),
        ("1.jwk", '{"kty": "EC", "crv": "P-256", "x": "qqqqqqqqqqqqqqqqqqqqqqqq"}', ""),
        ("settings.json", '{"k": "qqqqqqqqqqqqqqqqqqqqqqqq"}', ""),
        ("regr.json", '{"key": "qqqqqqqqqqqqqqqqqqqqqqqq", "id": "q"}', ""),
        ("etc/iscsi/initiatorname.iscsi", "GenerateName=yes\n", ""),
        ("etc/shadow", "root:*:19000:0:99999:7:::\nq:!:1::::::\n", ""),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n", ""),
        ("etc/nginx/.htpasswd", f"# {SHA512}\n", ""),
        ("notes", SHA512, ""),
        ("private-keys-v1.d/1.key", "Created: 20261130T230926\nKey: (shadowed-private-key", ""),
        ("README", "An identity begins with AGE-SECRET-KEY-1.\n", ""),
        # Of empty lines it is told at once, and not in centuries.
        ("empty.conf", "\n" * 100 + "There is no more than this in it.\n", ""),
        ("empty.conf", "# \r\n \t\n" * 100 + "There is no more than this in it.\n", ""),
        ("server.pem", pem("PUBLIC KEY"), ""),
        ("check", "grep -q -e '-----BEGIN PRIVATE KEY-----' server.pem\n", ""),
        ("README", "Begin it with\n\n  -----BEGIN PRIVATE KEY-----\n\nand so on.\n", ""),
        ("README", "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n", ""),
        ("named.conf", BIND, ""),
        ("rndc.key", "".join(f"# {line}\n" for line in BIND.splitlines()), ""),
        ("etc/krb5.keytab", "\5\2", ""),
        ("data", "\5\2\0\0\0\1", ""),
        ("etc/machine-id", "uninitialized\n", ""),
        ("etc/machine-id", "0" * 32 + "\n", ""),
        ("etc/machine-id", "", ""),
        ("var/lib/systemd/random-seed", "", ""),
    ],
)
def test_a_secret_is_told_by_its_content_and_name(path: str, text: str, secret: str) -> None:
    assert secret_of(path, text.encode("latin-1"), private=True) == secret


def test_a_store_that_everybody_may_read_holds_certificates() -> None:
    assert secret_of("etc/pki/java/cacerts.p12", b"\x30\x42", private=False) == ""


# -- builds ------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Image:
    package = build_rpm(
        tmp_path,
        "app",
        [
            Packaged(path="/etc/app", directory=True),
            # For everybody to read, as keys of tests are; for the service; made by a scriptlet.
            Packaged(path="/etc/app/example.key", content=KEY),
            Packaged(path="/etc/app/same.key", words="%attr(0600,root,root)", content=KEY),
            Packaged(path="/etc/app/made.key", words="%ghost", content=KEY),
        ],
    )
    image = make_image(tmp_path / "root", [package])
    image.write("/etc/app/made.key", KEY)
    return image


def named(image: Image) -> list[tuple[str, str]]:
    return [(one.code, one.path) for one in image.prepare().findings if one.code not in NOTES]


@pytest.mark.root
@pytest.mark.rpm
def test_secrets_that_were_made_while_the_image_was_built_are_named_before_they_are_moved(
    image: Image,
) -> None:
    """Debian's ``openssh-server`` makes three: every server of that image would have the same."""
    for kind in ("ecdsa", "ed25519", "rsa"):
        image.write(f"/etc/ssh/ssh_host_{kind}_key", pem("OPENSSH PRIVATE KEY"), mode=0o600)
        image.write(f"/etc/ssh/ssh_host_{kind}_key.pub", "ssh qqqq\n")
    image.write("/etc/ssh/sshd_config", "Port 22\n", mode=0o600)
    image.write("/var/lib/app/private/key-of-1", KEY, mode=0o640)
    image.write("/var/lib/app/seed", KEY + "x" * (1 << 16), mode=0o600)
    image.write("/var/lib/app/empty.key")
    (image.root / "etc/ssl").mkdir()
    (image.root / "etc/ssl/server.key").symlink_to("/etc/pki/server.key")
    image.write("/etc/pki/server.key", KEY)
    image.write("/etc/machine-id", "0123456789abcdef" * 2 + "\n")
    image.write("/tmp/app/server.key", KEY)
    image.write(
        "/etc/ipavolume.toml",
        '[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/scratch"\nlists = ["/etc/volume-scratch-list"]\nvolatile = true\n',
    )
    image.list("/etc/app/", "/etc/ssh/", "/etc/ssl/", "/etc/machine-id", "/var/lib/app/")
    image.write("/etc/volume-scratch-list", "/tmp/app/\n")
    before = picture(image.root)
    with pytest.raises(UnfitImageError) as caught:
        image.prepare(strict=True)
    expected = [
        ("shipped-secret", "/etc/app"),
        ("shipped-secret", "/etc/machine-id"),
        ("shipped-secret", "/etc/ssh"),
        ("shipped-secret", "/var/lib/app/private/key-of-1"),
    ]
    assert [(one.code, one.path) for one in caught.value.refused] == expected
    app, machine_id, ssh, _ = (one.message for one in caught.value.refused)
    assert "'made.key', a private key; 'same.key', a private key" in app
    assert "'ssh_host_ed25519_key', a private key" in ssh
    assert "Empty it before prepare, and" in machine_id
    assert picture(image.root) == before
    # What they are is printed, never what is in them.
    ended = run_ipavolume("prepare", "--root", str(image.root), "--json")
    assert ended.stderr.count("[shipped-secret]") == ended.stdout.count('"shipped-secret"') == 4
    assert LINE not in ended.stdout + ended.stderr
    # A build on top of this one names them again, and where they are now.
    again = [one for one in image.prepare().findings if one.code == "shipped-secret"]
    assert [(one.code, one.path) for one in again] == expected
    assert "Remove them at '/data-template/etc/ssh' before prepare, and" in again[2].message
    template = image.root / "data-template"
    for path in ("etc/app/made.key", "etc/app/same.key", "var/lib/app/private/key-of-1"):
        (template / path).unlink()
    for key in (template / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (template / "etc/machine-id").write_text("")
    image.prepare(strict=True)


@pytest.mark.root
@pytest.mark.rpm
def test_a_key_that_the_configuration_names_by_its_path_is_meant(image: Image) -> None:
    image.write("/etc/lab/ca.key", KEY, mode=0o600)
    image.write("/etc/lab/site.key", KEY, mode=0o600)
    image.list("/etc/lab/")
    configuration = '[files]\nrefresh = ["/etc/lab/ca.key", "/etc/*"]\n'
    image.write("/etc/ipavolume.toml", configuration)
    assert named(image) == [("shipped-secret", "/etc/lab/site.key")]
    image.write(
        "/etc/ipavolume.toml",
        f'{configuration}[[package]]\nname = "lab"\nversion = "1"\n'
        'config = ["/etc/lab/site.key"]\n',
    )
    assert named(image) == []


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("listed", ["/etc/machine-id", "/etc/app/"])
def test_the_id_that_systemd_takes_for_the_machines_is_named(image: Image, listed: str) -> None:
    """Debian's ``dbus`` makes it; with /etc/machine-id emptied every volume got that one."""
    (image.root / "etc/app/made.key").unlink()
    (image.root / "etc/app/same.key").unlink()
    image.write("/etc/machine-id", "")
    made = image.write("/var/lib/dbus/machine-id", "0123456789abcdef" * 2 + "\n")
    image.list(listed)
    expected = [("shipped-secret", "/var/lib/dbus/machine-id")] * (listed == "/etc/machine-id")
    assert named(image) == expected == named(image)
    made.unlink()
    made.symlink_to("/etc/machine-id")
    assert named(image) == []


@pytest.mark.root
@pytest.mark.rpm
def test_an_id_that_is_listed_is_named_once_in_a_derived_image_too(image: Image) -> None:
    for path in ("app/made.key", "app/same.key"):
        (image.root / "etc" / path).unlink()
    image.write("/etc/machine-id", "")
    image.write("/var/lib/dbus/machine-id", "0123456789abcdef" * 2 + "\n")
    image.list("/etc/machine-id", "/var/lib/dbus/")
    expected = [("shipped-secret", "/var/lib/dbus/machine-id")]
    assert named(image) == expected == named(image)
