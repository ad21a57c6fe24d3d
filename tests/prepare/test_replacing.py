"""What of a scriptlet's text replaces a listed file (F22)."""

from __future__ import annotations

import pytest

from ipavolume.prepare.replacing import replaced

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
