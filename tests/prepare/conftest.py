"""Trees that the real rpm made, for tests of prepare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.images import Image, Packaged, build_rpm, make_image


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two packages that share a directory and a file, and a newer one."""
    top = tmp_path_factory.mktemp("packages")
    alpha = [
        Packaged(path="/etc/alpha", directory=True),
        Packaged(path="/etc/alpha/alpha.conf", words="%config(noreplace)", content="a1\n"),
        Packaged(path="/etc/alpha/plain.conf", words="%config", content="p1\n"),
        Packaged(path="/etc/alpha/maybe.conf", words="%config(missingok)", content="m1\n"),
        Packaged(path="/etc/alpha/data", content="d1\n"),
        Packaged(path="/etc/alpha/link", target="alpha.conf"),
        Packaged(path="/etc/alpha/shared", words="%config", content="s1\n"),
        Packaged(path="/etc/alpha/made-later", words="%ghost", content="g\n"),
        Packaged(path="/etc/alpha/gone", words="%ghost %attr(0640,root,svc)", content="g\n"),
        Packaged(path="/etc/alpha/gone.d", words="%ghost %attr(0750,svc,svc)", directory=True),
        Packaged(path="/etc/single.conf", words="%config", content="one\n"),
        Packaged(path="/var/lib/alpha", words="%ghost %attr(0750,svc,svc)", directory=True),
        Packaged(path="/var/log/alpha.log", words="%ghost", content="log\n"),
        Packaged(path="/var/legacy/alpha.state", content="state\n"),
    ]
    alpha.append(Packaged(path="/etc/kept.conf", words="%config(noreplace)", content="k1\n"))
    changed = {
        "/etc/alpha/alpha.conf": "a2\n",
        "/etc/single.conf": "two\n",
        "/etc/kept.conf": "k2\n",
    }
    newer = [replace(one, content=changed.get(one.path, one.content)) for one in alpha]
    return {
        "alpha": build_rpm(top, "alpha", alpha, epoch=1),
        "alpha2": build_rpm(top, "alpha", newer, version="2", epoch=1),
        "aaa": build_rpm(
            top,
            "aaa",
            [
                Packaged(path="/etc/alpha", directory=True),
                Packaged(path="/etc/alpha/shared", content="s1\n"),
                Packaged(path="/etc/aaa.conf", words="%config", content="x\n"),
            ],
        ),
    }


@pytest.fixture
def image(tmp_path: Path, packages: dict[str, Path]) -> Image:
    """A tree with both packages."""
    return make_image(tmp_path / "root", [packages["alpha"], packages["aaa"]])


@pytest.fixture
def bare(tmp_path: Path, packages: dict[str, Path]) -> Image:
    """A tree with a package that owns next to nothing."""
    return make_image(tmp_path / "root", [packages["aaa"]])
