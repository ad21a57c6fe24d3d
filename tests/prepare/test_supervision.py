"""An image that wants its runs verified has something of ours that can ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipavolume.config.reading import parse_config
from ipavolume.errors import ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.prepare.systemd import SYSTEMD, check_supervision

VERIFY = '[verify]\ncommand = ["true"]\n'
EXEC = '[start]\nexec = ["{}"]\n'


def _check(root: Path, text: str) -> None:
    with ImageTree(str(root), {}) as tree:
        check_supervision(tree, parse_config(text.encode()))


@pytest.mark.parametrize("text", [VERIFY, EXEC.format("/usr/bin/named") + VERIFY, "[verify]\n"])
def test_without_systemd_a_start_that_does_not_stay_verifies_nothing(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(ConfigurationError, match="nothing of ours is left to ask") as caught:
        _check(tmp_path, text)
    assert (caught.value.code, caught.value.exit_status) == ("not-supervised", 78)
    assert "supervise = true" in caught.value.hint
    _check(tmp_path, f"[start]\nsupervise = true\n{VERIFY}")
    _check(tmp_path, "")


def test_under_systemd_a_process_of_ours_looks_on(tmp_path: Path) -> None:
    program = tmp_path / SYSTEMD[1:]
    program.parent.mkdir(parents=True)
    program.write_text("")
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/init").symlink_to(SYSTEMD)
    _check(tmp_path, VERIFY)
    _check(tmp_path, EXEC.format("/sbin/init") + VERIFY)
    with pytest.raises(ConfigurationError):
        _check(tmp_path, EXEC.format("/usr/bin/named") + VERIFY)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('on-failure = "undo"', "verify.on-failure 'undo' is none of keep, rollback"),
        ("timeout-s = 0", "verify.timeout-s must be a whole number from 1"),
        ("within = 3", "verify.within is not a known key"),
    ],
)
def test_what_is_misspelt_is_named(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        parse_config(f"[verify]\n{text}\n".encode())
