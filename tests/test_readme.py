"""What README and manual show of a file is what is in that file, and the topic of FreeIPA holds."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import inside
from support.command import PROJECT
from support.documents import MANUAL, README, blocks, chapter
from support.images import Image, Packaged, build_rpm, make_image, picture

from ipavolume.commands import manual
from ipavolume.config.model import Config
from ipavolume.config.profiles import PROFILES, VOLATILE
from ipavolume.config.reading import parse_config
from ipavolume.context import OVERRIDES
from ipavolume.prepare.globs import matches
from ipavolume.prepare.systemd import TARGET, WRAPPER


def shown() -> Iterator[tuple[str, str, str]]:
    """Yield each page, each file of the tests that a literal block of it follows, and the block."""
    for page, text in {"README": README, **MANUAL}.items():
        for before, block in blocks(text):
            if named := re.findall(r"``(tests/container/\S+?)``", before):
                yield page, named[-1], block


@pytest.mark.parametrize(
    ("name", "block"), [pytest.param(*pair, id=f"{page}-{pair[0]}") for page, *pair in shown()]
)
def test_a_shown_file_has_these_lines_in_this_order(name: str, block: str) -> None:
    lines = iter((PROJECT / name).read_text(encoding="utf-8").splitlines())
    missing = [line for line in block.splitlines() if line and line not in lines]
    assert missing == []


def test_all_that_is_shown_is_found() -> None:
    assert {name for page, name, _ in shown() if page == "README"} == {
        "tests/container/images/server/Dockerfile",
        "tests/container/images/plain/Dockerfile",
        "tests/container/server.yaml",
    }


def test_every_refusal_that_can_be_overridden_is_in_the_table() -> None:
    table = MANUAL["status"].split("those of the lock:\n\n")[1].split("\n\n")[0]
    assert re.findall(r"^``([a-z-]+)``  ", table, re.MULTILINE) == sorted(OVERRIDES)


@pytest.mark.parametrize("text", [README, MANUAL["upgrading"]], ids=["readme", "upgrading"])
def test_the_name_of_a_volume_is_given_to_each_command_as_it_takes_one(text: str) -> None:
    """The word that is behind ``docker run -v`` there is no directory."""
    words = [" ".join(one.split()) for one in re.findall(r"``(ipavolume [^`]*)``", text)]
    named = [one for one in words if re.match(r"ipavolume (check|rehearse) .*VOLUME", one)]
    assert named
    assert [one for one in named if "--volume-name VOLUME" not in one] == []


def test_readme_lists_every_topic_and_no_other() -> None:
    table = chapter(README, "The manual")
    assert sorted(re.findall(r"^``([a-z-]+)``  ", table, re.MULTILINE)) == sorted(MANUAL)


def test_what_is_said_to_be_in_the_manual_is_there() -> None:
    for page, text in {"README": README, **MANUAL}.items():
        for name in re.findall(r"``ipavolume\s+manual\s+([a-z-]+)``", text):
            assert name in MANUAL or manual.entries(name), (page, name)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 220


# -- FreeIPA -----------------------------------------------------------------------------


BLOCKS = [block for _, block in blocks(MANUAL["freeipa"])]


def _instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each on one line."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


DOCKERFILES = {text.split()[1]: _instructions(text) for text in BLOCKS if "FROM" in text}
CONFIGURATIONS = [text for text in BLOCKS if text.startswith("profile = ")]


def test_there_is_a_dockerfile_for_either_family() -> None:
    assert [base.partition(":")[0] for base in DOCKERFILES] == ["fedora", "almalinux"]


@pytest.mark.parametrize("base", list(DOCKERFILES))
def test_a_dockerfile_of_freeipa_is_complete(base: str) -> None:
    """F64: what an image needs, each of which cost a failed installation."""
    instructions = DOCKERFILES[base]
    words = [word for word, _ in instructions]
    assert set(words) == {"FROM", "RUN", "COPY", "ENV", "VOLUME", "STOPSIGNAL", "ENTRYPOINT"}
    said = dict(instructions)
    # Prepared last, when packages and files are there; then only what the engine is told.
    (prepared,) = (
        number for number, (_, rest) in enumerate(instructions) if "ipavolume prepare" in rest
    )
    assert words[prepared + 1 :] == ["VOLUME", "STOPSIGNAL", "ENTRYPOINT"]
    assert ("COPY", "rootfs/ /") in instructions[:prepared]
    volumes = [*PROFILES["freeipa"].volumes, VOLATILE["freeipa"]]
    assert json.loads(said["VOLUME"]) == [volume.mount for volume in volumes]
    assert json.loads(said["ENTRYPOINT"]) == [WRAPPER]
    family, packages = ("rhel", "ipa") if base.startswith("alma") else ("fedora", "freeipa")
    assert f"IPAPLATFORM_OVERRIDE={family}_container" in said["ENV"].split()
    installed = instructions[1][1].split()
    assert {f"{packages}-server", f"{packages}-server-dns"} <= set(installed)
    # The interpreter of the environment is one that was installed.
    (python,) = re.findall(r"([\w.]+) -m venv", str(instructions))
    assert python in installed


def test_systemd_is_told_of_the_platform_too() -> None:
    (text,) = (text for text in BLOCKS if "[Manager]" in text)
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    told = parser["Manager"]["DefaultEnvironment"]
    assert told in dict(DOCKERFILES["fedora:44"])["ENV"].split()
    assert f"After={TARGET}" in MANUAL["freeipa"]


def test_the_profile_is_what_the_manual_prints() -> None:
    """F63: an error named packages that nobody had written anywhere."""
    printed = parse_config(CONFIGURATIONS[0].encode())
    assert printed == parse_config(b'profile = "freeipa"\n')
    # Not because the profile filled in what is not printed.
    bare = parse_config(CONFIGURATIONS[0].partition("\n")[2].encode())
    for name in Config.__dataclass_fields__:
        if name != "profile":
            assert getattr(bare, name) == getattr(printed, name), name


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Packages with FreeIPA's names in two versions; the DNS server is not installed."""
    top = tmp_path_factory.mktemp("servers")

    def build(version: str) -> list[Path]:
        files = {
            "freeipa-server": ("/etc/ipa/default.conf", "/var/lib/ipa/state"),
            "389-ds-base": ("/etc/dirsrv/config", "/var/lib/dirsrv/state"),
            "certmonger": ("/etc/certmonger/certmonger.conf", "/var/lib/certmonger/lock"),
            "sssd-common": ("/etc/sssd/sssd.conf", "/var/lib/gssproxy/state"),
        }
        said = f"echo {version} $1 >>/data/var/log/ipaupgrade.log"
        return [
            build_rpm(
                top,
                name,
                [
                    Packaged(path=kept, words="%config(noreplace)", content=f"{kept} {version}\n"),
                    Packaged(path=state, content=f"{version}\n"),
                ],
                version=version,
                scriptlets=f"%post\n{said}\n" if name == "389-ds-base" else "",
            )
            for name, (kept, state) in files.items()
        ]

    return {version: build(version) for version in ("1", "2")}


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_an_image_as_the_manual_shows_it_lives(
    tmp_path: Path, servers: dict[str, list[Path]], number: int
) -> None:
    """Its configuration and the lists that come with it: prepare, start, edit, upgrade."""
    text = re.sub(r"^(command|exec) = .*$", r"\1 = []", CONFIGURATIONS[number], flags=re.MULTILINE)
    if number:
        text += "[first-run]\ncommand = []\n[start]\nexec = []\n"
    volumes = {mount: tmp_path / mount[1:] for mount in ("/data", "/volatile")}
    for volume in volumes.values():
        volume.mkdir(mode=0o755)

    def image(version: str) -> Image:
        image = make_image(tmp_path / version, servers[version])
        image.mask_steps()
        image.write("/usr/bin/sh", Path("/bin/sh").read_bytes(), mode=0o755)
        (image.root / "bin").symlink_to("usr/bin")
        image.write("/etc/ipavolume.toml", text)
        image.write("/etc/volume-own-list", "/etc/own/\n")
        image.write("/etc/own/conf", f"own {version}\n")
        image.write("/var/lib/dirsrv/cache", f"{version}\n")
        image.prepare(build_id=version)
        done = inside.run(image.root, volumes, [*inside.IPAVOLUME, "start", "--", "true"])
        assert done.returncode == 0, done.stderr
        return image

    image("1")
    edited = volumes["/data"] / "etc/sssd/sssd.conf"
    assert edited.read_text() == "/etc/sssd/sssd.conf 1\n"
    edited.write_text("edited\n")
    second = image("2")
    assert edited.read_text() == "edited\n"
    assert edited.with_name("sssd.conf.rpmnew").read_text() == "/etc/sssd/sssd.conf 2\n"
    assert (volumes["/data"] / "etc/dirsrv/config").read_text() == "/etc/dirsrv/config 2\n"
    assert (volumes["/data"] / "var/log/ipaupgrade.log").read_text() == "2 2\n"
    assert (volumes["/data"] / "etc/own").is_dir() == bool(number)
    shipped = picture(second.root / "volatile-template", times=False)
    assert "/var/lib/gssproxy/state" in shipped
    assert picture(volumes["/volatile"], times=False) == shipped


@pytest.mark.root
@pytest.mark.rpm
def test_the_example_does_not_bring_back_a_site_that_was_switched_off_by_deleting_its_link() -> (
    None
):
    """What config of a [[package]] matches comes back, as with rpm."""
    path = PROJECT / "ipavolume/examples/services/rootfs/etc/ipavolume.toml"
    globs = [glob for one in tomllib.loads(path.read_text())["package"] for glob in one["config"]]
    for link in ("sites-enabled/default", "modules-enabled/50-mod-stream.conf"):
        path_there = f"/data/etc/nginx/{link}"
        assert [glob for glob in globs if matches(path_there, "/data", glob)] == []


@pytest.mark.slow
def test_the_demo_comes_to_its_end() -> None:
    done = subprocess.run(
        [PROJECT / "scripts/demo"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "seconds in all" in done.stdout.splitlines()[-1]
    assert "The runs this volume has seen" in done.stdout
