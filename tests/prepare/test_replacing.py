"""What of a scriptlet's text replaces a listed file (F22), or does not enter a listed directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ipavolume.prepare.replacing import passed_by, replaced

PATHS = {"/etc/single.conf", "/etc/app/other.conf"}


@pytest.mark.parametrize(
    "text",
    [
        "sed -i s/a/b/ /etc/single.conf",
        "sed -ri.bak -e 's/a/b/' /etc/single.conf || :",
        "if [ $1 -gt 1 ]; then\n  sed --in-place s/a/b/ \\\n    /etc/single.conf\nfi",
        "perl -pi -e 's/a/b/' /etc/single.conf",
        "test -e x && mv -f x /etc/single.conf >/dev/null 2>&1",
        "mv /tmp/single.conf /etc/",
        "mv /etc/single.conf /etc/single.conf.old",
        "/usr/bin/install -m 0644 /usr/share/x /etc/single.conf",
        "install -D '/usr/share/svc/single.conf' /etc",
        "cp --remove-destination x /etc/single.conf",
        "ln -sf /usr/share/x /etc/single.conf",
        "LC_ALL=C rm -f /etc/none /etc/single.conf",
        "! sed -i s/it's/b/ /etc/single.conf",
        "done=`rm -f /etc/single.conf`",
    ],
)
def test_a_command_that_replaces_a_listed_file_is_found(text: str) -> None:
    assert {path for path, _ in replaced(text, PATHS)} == {"/etc/single.conf"}


@pytest.mark.parametrize(
    "text",
    [
        "# sed -i s/a/b/ /etc/single.conf",
        "sed s/a/b/ /etc/single.conf >/tmp/x",
        "cat /tmp/x >/etc/single.conf",
        "cp x /etc/single.conf",
        "cp /etc/single.conf /tmp",
        "sed -i s/a/b/ /data/etc/single.conf",
        "sed -i s/a/b/ /etc/single.conf.old",
        "echo rm /etc/single.conf",
        "chmod 0600 /etc/single.conf",
        "mv",
        "",
    ],
)
def test_one_that_writes_to_it_or_to_another_is_not(text: str) -> None:
    assert list(replaced(text, PATHS)) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "entered"),
    [
        ("chown -R 1 LINK", False),
        ("chown -f -R -h 1:1 LINK || true", False),
        ("chown --recursive 1 LINK", False),
        ("/bin/chgrp -R 1 LINK", False),
        ("find LINK -type f -exec chown 1:1 {} ';'", False),
        ("find LINK -maxdepth 1 -type f | xargs -r chown 1", False),
        ("if :; then cp -a LINK COPY && chown -R 1 COPY; fi", False),
        ("for file in `find LINK -type f`; do chown 1 $file; done", False),
        ("for file in $(find LINK -type f); do chown 1 $file; done", False),
        ("cp -r LINK COPY; chown -R 1 COPY", False),
        ("chown -R -H 1 LINK", True),
        ("chown -RL 1 LINK", True),
        ("chown -R 1 LINK/", True),
        ("chown 1 LINK/*", True),
        ("chown -R 1 LINK/file", True),
        ("find -H LINK -type f -exec chown 1:1 {} ';'", True),
        ("find LINK/ -type f -exec chown 1:1 {} ';'", True),
        ("cp -aH LINK COPY; chown -R 1 COPY", True),
    ],
)
def test_a_command_that_does_not_enter_a_directory_by_its_link_is_found(
    tmp_path: Path, command: str, *, entered: bool
) -> None:
    """As the programs themselves do."""
    (tmp_path / "on-the-volume").mkdir()
    file = tmp_path / "on-the-volume/file"
    file.touch()
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to("on-the-volume")
    text = command.replace("LINK", str(link)).replace("COPY", str(copy))
    subprocess.run(["sh", "-c", text], check=True, timeout=60)
    of = copy / "file" if "COPY" in command else file
    owner = os.stat(of)
    changed = 1 in (owner.st_uid, owner.st_gid) and not copy.is_symlink()
    assert changed is entered
    assert bool(list(passed_by(text, {str(link)}))) is not entered


@pytest.mark.parametrize(
    "text",
    [
        "find /opt -path /etc/app -prune -o -type f -exec chown app {} +",
        "find /opt ! -newer /etc/app -delete",
        "cp -a -t /etc/app /opt/app/defaults",
        "cp -a /opt/app/defaults /etc/app",
        "chmod -R g+r /etc/app",
    ],
)
def test_one_that_only_compares_with_it_or_copies_into_it_is_not(text: str) -> None:
    assert list(passed_by(text, {"/etc/app"})) == []
