"""What a container was started with becomes the command line that the FreeIPA images make."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.requirements import need_tool

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import UsageError
from ipavolume.firstrun.command import command
from ipavolume.firstrun.request import (
    FirstRunCommand,
    Request,
    make_request,
    redactor,
    split_words,
)

SERVER = FirstRunConfig(command=("/usr/sbin/ipa-server-install",), done_when="/etc/ipa/ca.crt")
REPLICA = FirstRunConfig(command=("/usr/sbin/ipa-replica-install",))
OTHER = FirstRunConfig(command=("/opt/app/setup", "--now"), done_when="/etc/app/done")


def made(
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    config: FirstRunConfig = SERVER,
    files: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> FirstRunCommand:
    """Return the command for a container with these arguments and files on its volume."""
    there = {name: text.encode() for name, text in (files or {}).items()}
    return command(
        config,
        make_request(arguments, environment or {}),
        mount="/data",
        names=sorted(there),
        read=there.get,
        secret=lambda path: (secrets or {})[path].encode(),
    )


SERVER_FILE = "ipa-server-install-options"
REPLICA_FILE = "ipa-replica-install-options"


@pytest.mark.parametrize(
    ("arguments", "environment", "files", "expected"),
    [
        pytest.param((), {}, {}, "ipa-server-install", id="the default"),
        pytest.param(
            ("-U", "-r", "EXAMPLE.TEST"), {}, {}, "ipa-server-install -U -r EXAMPLE.TEST", id="args"
        ),
        pytest.param(
            ("ipa-server-install", "-U"), {}, {}, "ipa-server-install -U", id="server by name"
        ),
        pytest.param(
            ("ipa-replica-install", "-U"), {}, {}, "ipa-replica-install -U", id="replica by name"
        ),
        pytest.param(("no-exit", "-U"), {}, {}, "ipa-server-install -U", id="no-exit"),
        pytest.param(
            ("no-exit", "ipa-replica-install", "-U"),
            {},
            {},
            "ipa-replica-install -U",
            id="no-exit and a name",
        ),
        pytest.param(
            ("-U",),
            {},
            {SERVER_FILE: "--realm=X\n--domain 'x y'\n"},
            "ipa-server-install --realm=X --domain x|y -U",
            id="file first",
        ),
        pytest.param((), {}, {REPLICA_FILE: "-U"}, "ipa-replica-install -U", id="replica by file"),
        pytest.param(
            ("ipa-server-install",),
            {},
            {REPLICA_FILE: "-U"},
            "ipa-server-install",
            id="name beats file",
        ),
        pytest.param(
            (),
            {},
            {REPLICA_FILE: "-U", "replica-info-a.gpg": "x"},
            "ipa-replica-install /data/replica-info-a.gpg -U",
            id="replica file",
        ),
        pytest.param((), {}, {"a.gpg": "", "b.gpg": ""}, "ipa-server-install", id="not a replica"),
        pytest.param(
            (),
            {"PASSWORD": "it's me"},
            {},
            "ipa-server-install --admin-password=it's|me --ds-password=it's|me",
            id="PASSWORD",
        ),
        pytest.param(
            ("--ds-password=d",),
            {"PASSWORD": "a"},
            {},
            "ipa-server-install --ds-password=d --admin-password=a",
            id="PASSWORD and --ds-password",
        ),
        pytest.param(
            (),
            {"PASSWORD": "a"},
            {SERVER_FILE: "-p d"},
            "ipa-server-install -p d --admin-password=a",
            id="PASSWORD and -p",
        ),
        pytest.param(
            ("ipa-replica-install",),
            {"PASSWORD": "a"},
            {},
            "ipa-replica-install --password=a",
            id="PASSWORD of a replica",
        ),
        pytest.param(
            ("ipa-replica-install", "--principal", "admin"),
            {"PASSWORD": "a"},
            {},
            "ipa-replica-install --principal admin --admin-password=a",
            id="PASSWORD of a principal",
        ),
        pytest.param(
            ("-U",),
            {"IPA_SERVER_INSTALL_OPTS": '-r "X Y" --no-ntp', "DEBUG": "1"},
            {},
            "ipa-server-install -U -r X|Y --no-ntp --debug",
            id="IPA_SERVER_INSTALL_OPTS and DEBUG",
        ),
        pytest.param(
            ("a b", "--realm=$HOME\n"),
            {"PASSWORD": "", "DEBUG": ""},
            {},
            None,
            id="a word that is no option",
        ),
        pytest.param(
            ("--realm=$HOME",), {"DEBUG": ""}, {}, "ipa-server-install --realm=$HOME", id="empty"
        ),
    ],
)
def test_the_command_line(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    files: Mapping[str, str],
    expected: str | None,
) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="is no command of this container"):
            made(arguments, environment, files=files)
        return
    words = [word.replace("|", " ") for word in f"/usr/sbin/{expected}".split(" ")]
    assert list(made(arguments, environment, files=files).words) == words


def test_the_configured_command_is_the_default_and_keeps_its_own_words() -> None:
    assert made(("-U",), config=REPLICA).words == ("/usr/sbin/ipa-replica-install", "-U")
    unattended = FirstRunConfig(command=("/usr/sbin/ipa-server-install", "-U"))
    assert made(("ipa-replica-install",), config=unattended).words == (
        "/usr/sbin/ipa-replica-install",
        "-U",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "/opt/app/setup --now"),
        (("setup", "--site", "a"), "/opt/app/setup --now --file|opt --site a"),
        (("site", "a"), "/opt/app/setup --now --file|opt site a"),
    ],
)
def test_another_command_gets_its_file_and_its_arguments_and_nothing_of_freeipa(
    arguments: Sequence[str], expected: str
) -> None:
    files = {"setup-options": "'--file opt'"} if arguments else {}
    environment = {"PASSWORD": "s3", "IPA_SERVER_INSTALL_OPTS": "-r X", "DEBUG": "1"}
    found = made(arguments, environment, config=OTHER, files=files)
    assert list(found.words) == [word.replace("|", " ") for word in expected.split(" ")]
    assert found.secrets == ("s3",)


@pytest.mark.parametrize(
    ("arguments", "files", "message"),
    [
        pytest.param(("/bin/bash",), {}, "'/bin/bash' is no command", id="a shell"),
        pytest.param(("ipa-server-upgrade",), {}, "is no command", id="another program"),
        pytest.param(
            ("ipa-replica-install",), {SERVER_FILE: ""}, f"/data holds {SERVER_FILE}", id="both"
        ),
        pytest.param(
            ("ipa-replica-install",),
            {"a.gpg": "", "b.gpg": ""},
            "more than one replica file: 'a.gpg', 'b.gpg'",
            id="two replica files",
        ),
        pytest.param((), {SERVER_FILE: "a\n'b\n"}, f"/data/{SERVER_FILE}, line 2", id="quote"),
        pytest.param((), {SERVER_FILE: "a\\"}, "nothing follows the backslash", id="backslash"),
        pytest.param((), {SERVER_FILE: "a\0b"}, "holds a NUL character", id="NUL"),
    ],
)
def test_what_makes_no_sense_is_an_error_of_usage(
    arguments: Sequence[str], files: Mapping[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        made(arguments, files=files)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2
    assert caught.value.hint


def test_secrets_come_from_files_and_never_from_both() -> None:
    found = made(
        environment={"PASSWORD_FILE": "/run/secrets/p", "IPA_SERVER_INSTALL_OPTS_FILE": "/s/o"},
        secrets={"/run/secrets/p": "s3cret\n", "/s/o": "-r X\n--dirsrv-pin=1234\n"},
    )
    assert found.words[1:] == (
        "--admin-password=s3cret",
        "--ds-password=s3cret",
        *("-r", "X", "--dirsrv-pin=1234"),
    )
    assert found.secrets == ("1234", "s3cret")
    for name in ("PASSWORD", "IPA_SERVER_INSTALL_OPTS"):
        with pytest.raises(UsageError, match=f"both {name} and {name}_FILE are set") as caught:
            make_request((), {name: "s3cret", f"{name}_FILE": "/run/secrets/p"})
        assert "s3cret" not in str(caught.value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "--dirsrv-pin=s3cret" if name != "PASSWORD" else "s3cret")
            patch.setenv(f"{name}_FILE", "/run/secrets/p")
            assert redactor().text("it is s3cret") == "it is ***"


@pytest.mark.parametrize(
    ("words", "secrets"),
    [
        ("--admin-password s1 -p s2", {"s1", "s2"}),
        ("--admin-password=s1 -ps2 -a s3", {"s1", "s2", "s3"}),
        ("--dirsrv-pin=s1 --http-pin s2 --adtrust-secret=s3 --admin-pass s4", "s1 s2 s3 s4"),
        ("--realm=EXAMPLE.TEST --no-pkinit -r X -P admin", set()),
    ],
)
def test_every_option_that_speaks_of_a_secret_has_one(words: str, secrets: set[str] | str) -> None:
    wanted = set(secrets.split()) if isinstance(secrets, str) else secrets
    found = made(("-U",), files={SERVER_FILE: words})
    assert wanted <= set(found.secrets)
    assert not {"EXAMPLE.TEST", "X", "admin", "-U"} & set(found.secrets)
    assert wanted <= set(make_request(words.split(), {}).secrets())


def test_nothing_shows_what_a_request_holds() -> None:
    asked = make_request(["--admin-password=s3cret"], {"PASSWORD": "s3cret"})
    assert "s3cret" not in repr(asked)
    assert "s3cret" not in repr(made(["--admin-password=s3cret"], {"PASSWORD": "s3cret"}))
    assert asked.secrets() == ("s3cret",)


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (("--external-ca",), False),
        (("--external-ca", "--external-ca-type=ms-cs"), False),
        (("--external-cert-file=/data/ipa.crt",), True),
        (("-U", "--external-cert-file", "/data/ipa.crt"), True),
        (("--external_cert_file=/data/ipa.crt",), True),
        (("--external-cert=/data/ipa.crt",), True),
        (("--external-c",), False),
        ((), False),
    ],
)
def test_only_the_signed_certificate_is_an_answer(words: Sequence[str], *, answers: bool) -> None:
    assert made(words).answers is answers
    assert made(files={SERVER_FILE: " ".join(words)}).answers is answers
    assert made(environment={"IPA_SERVER_INSTALL_OPTS": " ".join(words)}).answers is answers


@pytest.mark.parametrize(
    ("arguments", "environment", "host"),
    [
        ((), {}, ""),
        ((), {"IPA_SERVER_HOSTNAME": "a.test"}, "a.test"),
        (("--hostname", "b.test"), {"IPA_SERVER_HOSTNAME": "a.test"}, "b.test"),
        (("--hostname=b.test",), {}, "b.test"),
    ],
)
def test_the_name_of_the_server(
    arguments: Sequence[str], environment: Mapping[str, str], host: str
) -> None:
    assert made(arguments, environment).host == host


def test_a_request_to_stay_is_seen() -> None:
    assert make_request(["no-exit", "-U"], {}).hold
    assert make_request([], {"DEBUG_NO_EXIT": "1"}).hold
    assert not make_request(["-U", "no-exit"], {"DEBUG_NO_EXIT": ""}).hold


def test_a_request_survives_being_handed_over() -> None:
    asked = make_request(
        ["no-exit", "--realm=\udcff \n", "'\""], {"PASSWORD": "ä\n", "HOME": "/", "DEBUG": "1"}
    )
    assert Request.load(asked.dump()) == asked
    assert dict(asked.environment) == {"PASSWORD": "ä\n", "DEBUG": "1"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"arguments":[1],"environment":{},"hold":false}',
        b'{"arguments":[],"environment":{"PASSWORD":1},"hold":false}',
        b'{"arguments":[],"environment":{"LD_PRELOAD":"x"},"hold":false}',
        b'{"arguments":[],"environment":{},"hold":"s3cret"}',
        b"[" * 100_000,
    ],
)
def test_a_request_that_was_altered_is_refused_and_not_shown(data: bytes) -> None:
    with pytest.raises(UsageError, match="was altered") as caught:
        Request.load(data)
    assert "s3cret" not in str(caught.value)


@given(st.text(alphabet="ab-=$# \t\n'\"\\", max_size=24))
@example("= ''")
@example("'' ''")
@example("'a\nb' a")
@example('"a\nb" a')
@example("a\\\nb a")
def test_words_are_split_as_xargs_splits_them(text: str) -> None:
    done = subprocess.run(
        [need_tool("xargs"), "printf", "%s\\0"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    try:
        words = split_words(text, where="it")
    except UsageError:
        # At the very end xargs forgives it, and drops what follows nothing.
        assert done.returncode != 0 or text[-1] in "'\"\\"
        return
    assert done.returncode == 0
    if words and not words[-1] and text[-1] in "'\"":
        # An empty word at the very end it forgets, unless a blank or a newline follows.
        words = words[:-1]
    # Without a word printf still prints one empty one.
    assert done.stdout == "".join(f"{word}\0" for word in words or [""])


def test_a_line_may_end_as_on_another_system() -> None:
    assert split_words("--realm=X\r\n-U\r\n", where="it") == ["--realm=X", "-U"]


@pytest.mark.parametrize("text", ["a '' b ''", "a \"\" b ''", "''", '""\n'])
def test_an_empty_word_is_a_word(text: str) -> None:
    words = [word.strip("'\"") for word in text.split()]
    assert split_words(text, where="it") == words
