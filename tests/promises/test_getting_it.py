"""The command comes as one file, as an rpm and as a wheel, with its manual and its examples."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.command import PROJECT, clean_environment, run_ipavolume
from support.documents import MANUAL
from support.images import Packaged, build_rpm, make_image, picture
from support.requirements import need_tool

from ipavolume.cli.main import main

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def _run(*words: str | Path, status: int = 0) -> str:
    env = clean_environment()
    del env["PYTHONPATH"]
    done = subprocess.run(
        words, check=False, capture_output=True, encoding="utf-8", env=env, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "ipavolume.pyz"
    _run(PROJECT / "scripts/zipapp", path)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has its standard library and nothing else."""
    directory = tmp_path_factory.mktemp("bare")
    _run(sys.executable, "-m", "venv", "--without-pip", directory)
    return directory / "bin/python"


def test_one_file_does_all_that_the_package_does(tmp_path: Path, file: Path, bare: Path) -> None:
    def made(name: str, *command: str | Path) -> tuple[set[str], object]:
        rpm = build_rpm(
            tmp_path / name, "app", [Packaged(path="/etc/app.conf", words="%config", content="1\n")]
        )
        image = make_image(tmp_path / name / "image", [rpm])
        image.list("/etc/app.conf", "/etc/systemd/system/")
        image.write("/etc/build-id", "1\n")
        (image.root / "usr/lib/systemd").mkdir(parents=True)
        image.write("/usr/lib/systemd/systemd")
        image.write("/usr/bin/ipavolume", mode=0o755)
        volume = tmp_path / name / "volume"
        volume.mkdir(mode=0o755)
        said = _run(*command, "prepare", "--root", image.root, "--image-name", "app:1")
        assert "Traceback" not in said
        _run(*command, "upgrade", "--root", image.root, "--volume", volume)
        return set(picture(image.root)), picture(volume / "etc", times=False)

    image, volume = made("file", bare, "-I", file)
    # Steps, units and the wrapper come out of the archive.
    assert any(name.endswith("s9000_ipa_server_upgrade.py") for name in image)
    assert "/usr/local/sbin/init" in image
    other, others = made("package", sys.executable, "-I", "-m", "ipavolume")
    assert image == other
    assert volume == others


def test_one_file_knows_version_manual_and_examples(file: Path, bare: Path, tmp_path: Path) -> None:
    first, python, formats, engines = _run(bare, "-I", file, "--version").splitlines()
    assert first.startswith("ipavolume ")
    assert python.endswith(str(bare))
    assert formats.startswith("formats: manifest ")
    assert engines.startswith("engines: ")
    assert _run(bare, "-I", file, "manual", "lock") == MANUAL["lock"]
    _run(bare, "-I", file, "examples", "slapd", "--to", tmp_path / "slapd")
    assert os.access(tmp_path / "slapd/rootfs/usr/local/sbin/run-slapd", os.X_OK)


def test_one_file_is_executed_by_its_first_line(file: Path) -> None:
    # Copied as it is, it is for everybody.
    assert file.stat().st_mode & 0o777 == 0o755
    assert _run(file, "--version").startswith("ipavolume ")


def test_an_interpreter_that_is_too_old_is_told_so(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        begin = archive.read("__main__.py").decode()
    # What it has to understand to say so; the system's is 3.6 on Enterprise Linux 8.
    ast.parse(begin, feature_version=(3, 6))
    told = begin.replace("(3, 11)", "(3, 99)")
    done = subprocess.run(
        [sys.executable, "-c", told], check=False, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1
    assert "3.11 or newer is needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rpm_brings_command_pages_and_completions(file: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "ipavolume.pyz").write_bytes(file.read_bytes())
    (sources / "LICENSE").write_bytes((PROJECT / "LICENSE").read_bytes())
    defined = {"_topdir": tmp_path / "top", "_sourcedir": sources, "_tmppath": tmp_path}
    words = [word for name, value in defined.items() for word in ("--define", f"{name} {value}")]
    _run(need_tool("rpmbuild"), "-bb", *words, PROJECT / "scripts/ipavolume.spec")
    (rpm,) = (tmp_path / "top/RPMS/noarch").glob("*.rpm")
    root = tmp_path / "root"
    root.mkdir()
    _run("rpm", "--root", root, "--dbpath", "/db", "--nodeps", "-i", rpm)
    assert _run(root / "usr/bin/ipavolume", "--version").startswith("ipavolume ")
    pages = {path.name for path in (root / "usr/share/man").rglob("*") if path.is_file()}
    assert pages == {"ipavolume.1", *(f"ipavolume-{topic}.7" for topic in MANUAL)}
    page = (root / "usr/share/man/man1/ipavolume.1").read_text()
    for name, command in main.commands.items():
        assert (f".SH ipavolume {name}\n" in page) is not command.hidden
    (completion,) = (root / "usr/share/bash-completion/completions").iterdir()
    assert completion.read_text().strip() == run_ipavolume("completion", "bash").stdout.strip()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("ipavolume upg", {"upgrade"}), ("ipavolume check --chec", {"--checksum"})],
)
def test_bash_completes_commands_and_options(file: Path, line: str, expected: set[str]) -> None:
    script = """
        source <("$1" completion bash)
        complete -p ipavolume >/dev/null
        COMP_WORDS=($2) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _ipavolume_completion "$1"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    said = _run("bash", "-ec", script, "bash", file, line)
    assert set(said.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_theirs(shell: str) -> None:
    assert f"_IPAVOLUME_COMPLETE={shell}_complete" in run_ipavolume("completion", shell).stdout


@pytest.mark.parametrize("name", ["freeipa", "postgresql", "services", "slapd"])
def test_an_example_is_copied_as_it_is(tmp_path: Path, name: str) -> None:
    assert f"{name} " in run_ipavolume("examples").stdout
    to = tmp_path / "copy"
    run_ipavolume("examples", name, "--to", to)

    def files(top: Path) -> dict[str, tuple[bytes, bool]]:
        return {
            str(path.relative_to(top)): (path.read_bytes(), os.access(path, os.X_OK))
            for path in top.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    there = files(PROJECT / "ipavolume/examples" / name)
    assert files(to) == there
    assert len(there) > 5
    said = run_ipavolume("examples", name, "--to", to, status=73).stderr
    assert "not empty" in said
    assert files(to) == there


def test_an_example_that_there_is_not_is_wrong_usage(tmp_path: Path) -> None:
    assert "examples lists" in run_ipavolume("examples", "mysql", "--to", tmp_path, status=2).stderr
    assert "--to DIR" in run_ipavolume("examples", "slapd", status=2).stderr
