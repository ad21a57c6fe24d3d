"""A right that is missing is one sentence: the call that failed, on what, and why (P35 to P38)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from support.command import Result, clean_environment, volume_of
from support.hostile import Workshop, upgrade
from support.images import picture
from support.requirements import need_tool, unavailable

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture
def volume(populated: Path, tmp_path: Path) -> Path:
    """A volume of image one."""
    return _copy(populated, tmp_path / "volume")


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=60)
    return target


def _run(command: str, image: Path, volume: Path, *prefix: str) -> Result:
    words = [*prefix, sys.executable, "-m", "ipavolume", command]
    return subprocess.run(
        [*words, "--root", str(image), "--volume", str(volume)],
        capture_output=True,
        check=False,
        text=True,
        # fuse-overlayfs is a file system like those that store less, not one to keep volumes on.
        env=clean_environment({"IPAVOLUME_ALLOW": "no-lock"}),
        timeout=60,
    )


def _without(*capabilities: str) -> tuple[str, ...]:
    words = ",".join(f"-{name}" for name in capabilities)
    return (need_tool("setpriv"), "--bounding-set", words, "--inh-caps", words, "--")


def _refused(
    image: Path, volume: Path, prefix: Sequence[str], *, code: str = "missing-right"
) -> tuple[str, str]:
    """Let an upgrade be refused for want of a right; return its one sentence and the hint."""
    before, changed_ns = picture(volume), volume.stat().st_mtime_ns
    done = _run("upgrade", image, volume, *prefix)
    assert (picture(volume), volume.stat().st_mtime_ns) == (before, changed_ns)
    assert done.returncode == 74, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if "error: " in line]
    (hint,) = [line for line in done.stderr.splitlines() if "hint: " in line]
    assert error.endswith(f"[{code}]")
    assert "state: the volume is as it was" in done.stderr
    return error, hint


NEEDED: Final = {
    "chown": "cannot change owners on '{}' (fchown to 250:251): Operation not permitted",
    "fowner": "cannot change modes on '{}' (fchmod to 4750): Operation not permitted",
    "dac_override": "cannot open files of all owners on '{}' (open of a file of another owner): "
    "Permission denied",
    "setfcap": "cannot store ACLs or capabilities on '{}' (setxattr of security.capability): "
    "Operation not permitted",
}


@pytest.mark.parametrize("capability", NEEDED)
def test_p36_a_capability_that_an_upgrade_needs_is_named_with_the_call(
    workshop: Workshop, volume: Path, capability: str
) -> None:
    error, hint = _refused(workshop.two(), volume, _without(capability))
    assert NEEDED[capability].format(volume) in error
    assert f"The container has no CAP_{capability.upper()}: take it out of --cap-drop" in hint


def test_a_capability_that_a_fresh_volume_needs_is_named_as_well(
    workshop: Workshop, tmp_path: Path
) -> None:
    """P36, F40: what an image has is known before anything is copied to an empty volume."""
    empty = tmp_path / "empty"
    empty.mkdir()
    error, hint = _refused(workshop.two(), empty, _without("setfcap"))
    assert NEEDED["setfcap"].format(empty) in error
    assert "The container has no CAP_SETFCAP: take it out of --cap-drop" in hint
    error, _ = _refused(workshop.two(), empty, _without("chown"))
    assert NEEDED["chown"].format(empty) in error


def test_p36_check_says_it_before_anything_is_started(workshop: Workshop, volume: Path) -> None:
    before = picture(volume)
    looked = _run("check", workshop.two(), volume, *_without("chown"))
    assert looked.returncode == 74
    assert "cannot change owners on" in looked.stdout
    assert picture(volume) == before


@pytest.mark.parametrize("command", ["upgrade", "check"])
def test_p36_root_that_modes_keep_out_is_told_the_capability(
    workshop: Workshop, volume: Path, command: str
) -> None:
    """With --cap-drop ALL it is root already; the mark of a first run is looked at before calls."""
    first_run = '[first-run]\ncommand = ["/bin/true"]\ndone-when = "/var/lib/svc/data"\n'
    image = workshop.image("closed", 2, configuration=first_run)
    closed = volume / "var/lib/svc"
    os.chown(closed, 250, 251)
    closed.chmod(0o700)
    before = picture(volume)
    prefix = _without("dac_override", "dac_read_search")
    done = _run(command, image, volume, *prefix)
    assert done.returncode == 74, done.stdout + done.stderr
    assert "Permission denied [missing-right]" in done.stdout + done.stderr
    assert "The container has no CAP_DAC_OVERRIDE" in done.stdout + done.stderr
    assert picture(volume) == before


def test_p36_what_the_kernel_would_drop_without_a_word_is_found(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    image = workshop.unprepared(tmp_path / "image", 2)
    tool = image.root / "var/lib/svc/data"
    tool.chmod(0o2755)
    image.prepare(build_id="set-id")
    volume = tmp_path / "volume"
    volume.mkdir()
    upgrade(workshop.one(), volume)
    prefix = (need_tool("setpriv"), "--clear-groups", *_without("fsetid")[1:])
    error, hint = _refused(image.root, volume, prefix)
    assert "(fchmod to 2750): it is accepted, and nothing is changed" in error
    assert "CAP_FSETID" in hint


def test_a_volume_that_needs_nothing_needs_no_right(workshop: Workshop, volume: Path) -> None:
    prefix = _without("chown", "fowner", "fsetid", "setfcap")
    done = _run("upgrade", workshop.one(), volume, *prefix)
    assert done.returncode == 0, done.stderr


# -- file systems on which files need names, and which do not keep everything ------------


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    """A directory that fuse-overlayfs can be mounted on, unmounted at the end."""
    for name in ("lower", "upper", "work", "fuse"):
        (tmp_path / name).mkdir()
    yield tmp_path / "fuse"
    while (tmp_path / "fuse").is_mount():
        subprocess.run([need_tool("umount"), str(tmp_path / "fuse")], check=True, timeout=60)


def _mount(fuse: Path, *options: str) -> Path:
    top = fuse.parent
    layers = [f"lowerdir={top}/lower", f"upperdir={top}/upper", f"workdir={top}/work"]
    words = [need_tool("fuse-overlayfs"), "-o", ",".join([*layers, *options]), str(fuse)]
    done = subprocess.run(words, capture_output=True, check=False, text=True, timeout=60)
    if done.returncode != 0:
        unavailable(f"fuse-overlayfs does not work here: {done.stderr}")
    return fuse / "volume"


def test_where_files_need_names_an_upgrade_works_and_leaves_nothing(
    workshop: Workshop, populated: Path, fuse: Path
) -> None:
    volume = _copy(populated, _mount(fuse))
    looked = _run("check", workshop.two(), volume)
    assert looked.returncode == 100, looked.stdout
    done = _run("upgrade", workshop.two(), volume)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(volume)) == [".ipavolume", "build-id", "etc", "var"]


def _failing(call: str, error: str) -> tuple[str, ...]:
    """Return what lets the first call of this name fail."""
    words = [need_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    return (*words, "-e", f"inject={call}:error={error}:when=1", "--")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("mkdirat", "EPERM", "cannot create files on '{}' (mkdir): Operation not permitted"),
        ("linkat", "EPERM", "cannot make hard links on '{}' (link): Operation not permitted"),
        ("renameat", "EPERM", "cannot rename files on '{}' (rename): Operation not permitted"),
        ("symlinkat", "EPERM", "cannot make symbolic links on '{}' (symlink): Operation not perm"),
        ("fsync", "EINVAL", "cannot make files durable on '{}' (fsync): Invalid argument"),
    ],
)
def test_p37_a_call_that_the_file_system_does_not_have_is_named(
    workshop: Workshop, populated: Path, fuse: Path, call: str, error: str, said: str
) -> None:
    volume = _copy(populated, _mount(fuse))
    told, hint = _refused(workshop.two(), volume, _failing(call, error))
    assert said.format(volume) in told
    assert "The file system of the volume (fuse" in hint
    assert not (volume / ".ipavolume-probe").exists()
    # Whoever only looks neither makes anything nor waits for the disk.
    looked = _run("check", workshop.two(), volume, *_failing(call, error))
    assert looked.returncode == 100, looked.stdout


def test_a_directory_that_cannot_be_made_durable_is_named_before_the_first_write(
    workshop: Workshop, volume: Path
) -> None:
    """What is renamed into it is durable by that alone, once a run has begun."""
    *words, end = _failing("fsync", "EINVAL")
    error, _ = _refused(workshop.two(), volume, (*words, "-P", str(volume), end))
    assert f"cannot make files durable on '{volume}' (fsync): Invalid argument" in error


def test_p37_a_file_system_that_keeps_no_owners_is_refused(workshop: Workshop, fuse: Path) -> None:
    (fuse.parent / "lower/volume").mkdir()
    volume = _mount(fuse, "squash_to_root")
    error, hint = _refused(workshop.two(), volume, ())
    assert "(fchown to 250:251): it is accepted, and nothing is changed" in error
    assert "The file system of the volume (fuse" in hint
    assert "Keep the volume on ext4, xfs or btrfs" in hint


def test_p37_a_server_that_maps_root_to_nobody_is_named(
    workshop: Workshop, populated: Path, fuse: Path
) -> None:
    _copy(populated, fuse.parent / "lower/volume")
    volume = _mount(fuse, "squash_to_uid=65534,squash_to_gid=65534")
    before = picture(volume)
    done = _run("upgrade", workshop.two(), volume)
    looked = _run("check", workshop.two(), volume, *())
    assert picture(volume) == before
    assert (done.returncode, looked.returncode) == (65, 65)
    assert f"every file on the volume '{volume}' belongs to nobody (65534)" in done.stderr
    assert "no_root_squash" in done.stderr


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("linkat", "ENOENT"),
        ("renameat", "ESTALE"),
        ("unlinkat", "ENOTEMPTY"),
        ("mkdirat", "EEXIST"),
    ],
)
def test_who_probes_at_the_same_time_from_another_host_disturbs_nothing(
    workshop: Workshop, populated: Path, fuse: Path, call: str, error: str
) -> None:
    """F40: on NFS both probe an empty volume before one of them has its lock."""
    volume = _copy(populated, _mount(fuse))
    done = _run("upgrade", workshop.two(), volume, *_failing(call, error))
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(volume)) == [".ipavolume", "build-id", "etc", "var"]


def test_what_an_interrupted_probe_left_is_removed(
    workshop: Workshop, populated: Path, fuse: Path
) -> None:
    volume = _copy(populated, _mount(fuse))
    (volume / ".ipavolume-probe").mkdir()
    (volume / ".ipavolume-probe/file").write_text("x\n")
    done = _run("upgrade", workshop.two(), volume)
    assert done.returncode == 0, done.stderr
    assert not (volume / ".ipavolume-probe").exists()


def test_findings_have_the_code_of_the_refusal(workshop: Workshop, volume: Path) -> None:
    words = [*_without("chown"), sys.executable, "-m", "ipavolume", "check", "--json"]
    words += ["--root", str(workshop.two()), str(volume)]
    said = subprocess.run(
        words, capture_output=True, check=False, text=True, env=clean_environment(), timeout=60
    ).stdout
    (finding,) = [item for item in volume_of(said)["findings"] if item["severity"] == "error"]
    assert finding["code"] == "missing-right"
    assert "CAP_CHOWN" in finding["hint"]
