"""Links into volumes, within them and out of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.images import Image, age, build_rpm, picture

from ipavolume.errors import ConfigurationError

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def test_links_of_the_image_into_the_volume_get_directories(bare: Image) -> None:
    root = bare.root
    bare.write("/usr/lib/app/x")
    (root / "usr/lib/app/direct").symlink_to("/data/spool/app/queue")
    (root / "usr/lib/app/relative").symlink_to("../../../data/other/file")
    (root / "usr/lib/app/through").symlink_to("/etc/app/sub/file")
    (root / "usr/lib/app/mount").symlink_to("/data")
    (root / "usr/lib/app/loop").symlink_to("loop")
    (root / "usr/lib/app/up").symlink_to("../../../../../../../../etc/passwd")
    (root / "run").mkdir()
    (root / "run/x").symlink_to("/data/not/scanned")
    bare.write("/etc/app/conf")
    bare.write("/var/lib/state/x")
    # F68: their places are not made yet.
    (root / "etc/state").symlink_to("../var/lib/state/now")
    (root / "etc/keyboard.conf").symlink_to("default/keyboard")
    bare.list("/etc/app/", "/var/lib/state/", "/etc/default/keyboard")
    bare.prepare()
    links = dict(bare.header().links)
    assert links == {
        "/etc/app": "/data/etc/app",
        "/etc/default/keyboard": "/data/etc/default/keyboard",
        "/etc/state": "/data/var/lib/state/now",
        "/var/lib/state": "/data/var/lib/state",
        "/usr/lib/app/direct": "/data/spool/app/queue",
        "/usr/lib/app/relative": "/data/other/file",
        "/usr/lib/app/through": "/data/etc/app/sub/file",
    }
    template = root / "data-template"
    assert (template / "spool/app").is_dir()
    assert not (template / "spool/app/queue").exists()
    assert (template / "other").is_dir()
    assert not (template / "etc/app/sub").exists()
    assert sorted(path.name for path in template.iterdir()) == ["etc", "other", "spool", "var"]
    assert [path.name for path in (template / "var/lib").iterdir()] == ["state"]


def test_a_hostile_tree_leads_nowhere_outside_of_it(bare: Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    age(outside)
    root = bare.root
    (root / "escape").symlink_to("../" * 20 + str(outside).lstrip("/"))
    (root / "absolute").symlink_to(outside)
    bare.list("/escape/secret", "/absolute/secret", "/etc/aaa.conf")
    before = picture(outside)
    bare.prepare()
    assert picture(outside) == before
    assert not any(
        path.read_bytes() == b"secret"
        for path in (root / "data-template").rglob("*")
        if path.is_file()
    )


def test_other_file_systems_are_not_searched_for_links(bare: Image, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("/data/from/elsewhere")
    (bare.root / "mnt").mkdir()
    bare.list("/etc/aaa.conf")
    subprocess.run(["mount", "--bind", str(other), str(bare.root / "mnt")], check=True)
    try:
        bare.prepare()
    finally:
        subprocess.run(["umount", str(bare.root / "mnt")], check=True)
    assert not (bare.root / "data-template/from").exists()


def httpd(image: Image) -> None:
    """Lay out what httpd's package has, and what other relative links there may be."""
    image.write("/usr/lib64/httpd/modules/mod_ssl.so", "module")
    image.write("/var/log/httpd/error_log", "log")
    image.write("/etc/httpd/conf/httpd.conf", "conf")
    image.write("/etc/httpd/conf.d/own.conf", "own")
    for name, target in {
        "modules": "../../usr/lib64/httpd/modules",
        "run": "../../run/httpd",
        "logs": "../../var/log/httpd",
        "conf.d/inside": "../conf/httpd.conf",
        "conf.d/dangling": "not/made/yet",
        "conf.d/circle": "circle",
        "absolute": "/usr/lib64/httpd/modules",
        "through": "../httpd/conf.d/own.conf",
    }.items():
        (image.root / "etc/httpd" / name).symlink_to(target)
    image.list("/etc/httpd/", "/var/log/httpd/")


def test_relative_links_that_would_lead_elsewhere_on_a_volume_fail_the_build(
    bare: Image,
) -> None:
    """F26: they dangled, and the web server did not find its modules."""
    httpd(bare)
    before = picture(bare.root)
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    assert caught.value.code == "relative-links"
    said = str(caught.value)
    modules = "'/etc/httpd/modules' -> '../../usr/lib64/httpd/modules'"
    assert f"{modules} (would do: '/usr/lib64/httpd/modules')" in said
    assert "'/etc/httpd/run' -> '../../run/httpd' (would do: '/run/httpd')" in said
    assert said.count("would do") == 2
    assert picture(bare.root) == before
    for name, target in {"modules": "/usr/lib64/httpd/modules", "run": "/run/httpd"}.items():
        link = bare.root / "etc/httpd" / name
        link.unlink()
        link.symlink_to(target)
    bare.prepare()
    assert (bare.root / "data-template/etc/httpd/logs").readlink() == Path("../../var/log/httpd")


def test_what_lies_in_an_entry_of_another_volume_is_judged_from_there(bare: Image) -> None:
    """F26: the way up is that of the place where a link goes, not of the directory around it."""
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    bare.write("/srv/app/conf", "conf")
    bare.write("/srv/app/logs/now", "log")
    (bare.root / "srv/app/logs/conf").symlink_to("../conf")
    (bare.root / "srv/app/now").symlink_to("logs/now")
    bare.list("/srv/app/")
    bare.list("/srv/app/logs/", name="logs")
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    assert "'/srv/app/logs/conf' -> '../conf' (would do: '/srv/app/conf')" in str(caught.value)
    assert "/srv/app/now" not in str(caught.value)


def test_an_image_that_was_prepared_with_such_a_link_is_warned_of_it(bare: Image) -> None:
    """F26: its volumes have it already, and whoever derives an image from it did not make it."""
    httpd(bare)
    for name in ("modules", "run"):
        (bare.root / "etc/httpd" / name).unlink()
    bare.prepare()
    link = bare.root / "data-template/etc/httpd/modules"
    link.symlink_to("../../usr/lib64/httpd/modules")
    bare.prepare()
    assert any(
        "'/etc/httpd/modules' led to '/usr/lib64/httpd/modules'" in one for one in bare.warnings
    )


def test_a_link_that_nothing_needs_does_not_stop_a_strict_build(bare: Image) -> None:
    """Debian's systemd has ``/var/log/README``; of a ``.wants`` link systemd takes the name."""
    bare.write("/usr/share/doc/systemd/README.logs", "read me")
    bare.write("/usr/lib/systemd/system/app.service", "[Service]\n")
    wants = bare.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "app.service").symlink_to("../../../../usr/lib/systemd/system/app.service")
    (bare.root / "var/log").mkdir(parents=True, exist_ok=True)
    (bare.root / "var/log/README").symlink_to("../../usr/share/doc/systemd/README.logs")
    bare.list("/etc/systemd/system/", "/var/log/")
    bare.prepare(strict=True)


def test_the_link_of_selinux_does_not_fail_a_build_with_the_profile(bare: Image) -> None:
    """F26: nothing in a container needs it."""
    bare.write("/etc/selinux/config", "SELINUX=enforcing")
    bare.write("/etc/sysconfig/other", "other")
    (bare.root / "etc/sysconfig/selinux").symlink_to("../selinux/config")
    bare.list("/etc/sysconfig/")
    with pytest.raises(ConfigurationError, match="/etc/sysconfig/selinux"):
        bare.prepare()
    for name in ("389-ds-base", "certmonger", "sssd-common"):
        bare.install(build_rpm(bare.root.parent, name, []))
    bare.write("/etc/ipavolume.toml", 'profile = "freeipa"\n')
    assert not any("selinux" in str(one) for one in bare.prepare().findings)
