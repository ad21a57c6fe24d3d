"""Owner, mode and ACL, as both sides changed them."""

from __future__ import annotations

from typing import Final

import pytest
from support.plans import (
    BESIDE,
    CONFIG,
    DIRECTORY,
    FOLDER,
    GHOST,
    KEPT,
    LINK,
    NOREPLACE,
    OLD,
    OVER,
    OWN,
    REPLACED,
    WAS_THERE,
    P,
    at,
    install,
    keep,
    metadata,
    now,
    was,
)
from support.values import World, acl, thing

from ipavolume.model.actions import Action, Rule
from ipavolume.model.files import Metadata

_NAMED: Final = (acl(u1000=6),)
_OPEN: Final = thing("edited", mode=0o640, planted=True)
_REFUSED: Final = (
    "the package changed owner or mode, but this is not the package's content, and not root "
    "alone could have put it there"
)
_DROPPED: Final = "the package changed owner or mode; the ACL set here is dropped"


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            at(was(), thing("old", mode=0o600), was()), [], id="only the administrator's side"
        ),
        pytest.param(
            at(was(), thing("old", mode=0o600), now()),
            [
                install(
                    now(),
                    REPLACED,
                    before=thing("old", mode=0o600),
                    metadata=Metadata(uid=0, gid=0, mode=0o600),
                )
            ],
            id="the administrator's mode on the package's new content",
        ),
        pytest.param(
            at(was("", DIRECTORY), FOLDER, now("", DIRECTORY, mode=0o700, gid=5)),
            [metadata(FOLDER, mode=0o700, gid=5)],
            id="a directory",
        ),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("/a", LINK, uid=5, mode=0o700)),
            [metadata(thing("/a", LINK), uid=5, mode=0o700, content="")],
            id="a link",
        ),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("/a", LINK, mode=0o700)),
            [],
            id="the mode of a link",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now("old", flags=CONFIG, uid=5)),
            [metadata(OWN, uid=5), keep(Rule.RPM, KEPT)],
            id="edited content, changes hands",
        ),
        pytest.param(
            at(was(flags=CONFIG), _OPEN, now("old", flags=CONFIG, uid=5)),
            [keep(Rule.METADATA, _REFUSED), keep(Rule.RPM, KEPT)],
            id="planted content never changes hands",
        ),
        pytest.param(
            at(was(flags=CONFIG, mode=0o640), _OPEN, now("old", flags=CONFIG, mode=0o600)),
            [metadata(_OPEN, mode=0o600), keep(Rule.RPM, KEPT)],
            id="planted content may become narrower",
        ),
        pytest.param(
            at(was(), thing("old", mode=0o664, xattrs=_NAMED), now(mode=0o640)),
            [
                install(
                    now(mode=0o640),
                    REPLACED,
                    before=thing("old", mode=0o664, xattrs=_NAMED),
                    metadata=Metadata(uid=0, gid=0, mode=0o640),
                ),
                keep(Rule.ACL_DROPPED, _DROPPED),
            ],
            id="an ACL of the administrator is dropped and said",
        ),
        pytest.param(
            at(was(), OLD, now(xattrs=(("user.x", b"1"), ("security.capability", b"c")))),
            [
                install(
                    now(xattrs=(("user.x", b"1"), ("security.capability", b"c"))),
                    REPLACED,
                    before=OLD,
                )
            ],
            id="other attributes of a new file",
        ),
        pytest.param(
            at(was(flags=NOREPLACE), OWN, now(flags=NOREPLACE, mode=0o600)),
            [
                install(now(flags=NOREPLACE, mode=0o600), BESIDE, path=P + ".rpmnew"),
                metadata(OWN, mode=0o600),
                keep(Rule.RPM, f"{BESIDE}; see {P}.rpmnew"),
            ],
            id="beside a .rpmnew",
        ),
        pytest.param(
            at(
                was(flags=CONFIG),
                thing("edited", mode=0o664, xattrs=_NAMED),
                now("old", flags=CONFIG, mode=0o640),
            ),
            [
                metadata(thing("edited", mode=0o664, xattrs=_NAMED), mode=0o640, xattrs=()),
                keep(Rule.ACL_DROPPED, _DROPPED),
                keep(Rule.RPM, KEPT),
            ],
            id="an ACL of the administrator is dropped from edited content",
        ),
        pytest.param(
            at(was(), OLD, now(mode=0o4755, xattrs=(*_NAMED, ("security.capability", b"c")))),
            [
                install(
                    now(mode=0o4755, xattrs=(*_NAMED, ("security.capability", b"c"))),
                    REPLACED,
                    before=OLD,
                )
            ],
            id="set-id, ACL and capability of a new file",
        ),
        pytest.param(
            at(was(), thing("old", planted=True), was(uid=5)),
            [metadata(thing("old", planted=True), uid=5, content="old")],
            id="the package's own content changes hands wherever it is",
        ),
        pytest.param(
            at(was("", DIRECTORY, package=""), FOLDER, now("", DIRECTORY, package="", mode=0o700)),
            [metadata(FOLDER, mode=0o700)],
            id="a directory of no package",
        ),
        pytest.param(
            at(
                was("", DIRECTORY, uid=5, gid=5, mode=0o750),
                thing("", DIRECTORY, uid=5, gid=5, mode=0o750, xattrs=_NAMED),
                now("", DIRECTORY, package="", mode=0o755),
            ),
            [keep(Rule.UNOWNED, "no package owns it; the image has another owner or mode")],
            id="a package gave the directory up, and the image has what prepare made",
        ),
        pytest.param(
            at(
                was("", DIRECTORY, mode=0o700),
                thing("", DIRECTORY, mode=0o700),
                now("", DIRECTORY, package="", mode=0o755),
            ),
            [keep(Rule.UNOWNED, "no package owns it; the image has another owner or mode")],
            id="a package gave root's directory up: not opened",
        ),
        pytest.param(
            at(
                was("", DIRECTORY, package="", uid=5, mode=0o750),
                thing("", DIRECTORY, uid=5, mode=0o750),
                now("", DIRECTORY, package="", mode=0o755),
            ),
            [keep(Rule.UNOWNED, "no package owns it; the image has another owner or mode")],
            id="an image forgot what the last one gave a service",
        ),
        pytest.param(
            at(
                was("", DIRECTORY, uid=5, mode=0o750),
                thing("", DIRECTORY, uid=5, mode=0o750),
                now("", DIRECTORY, package="", uid=6, mode=0o750),
            ),
            [metadata(thing("", DIRECTORY, uid=5, mode=0o750), uid=6)],
            id="a package gave the directory up, and the image gives it to another account",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700, uid=5)),
            [metadata(FOLDER, mode=0o700, uid=5, reason=WAS_THERE)],
            id="a directory that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o777)),
            [metadata(FOLDER, mode=0o777, reason=WAS_THERE)],
            id="a directory that was there, opened as rpm does",
        ),
        pytest.param(at(None, FOLDER, now("", DIRECTORY)), [], id="a directory that was right"),
        pytest.param(
            at(None, thing("", DIRECTORY, xattrs=(acl(u7=7),)), now("", DIRECTORY)),
            [
                metadata(thing("", DIRECTORY, xattrs=(acl(u7=7),)), xattrs=(), reason=WAS_THERE),
                keep(Rule.ACL_DROPPED, _DROPPED),
            ],
            id="a directory that was there with an ACL",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), mounted=[P]),
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a directory that is a mount point",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), mounted=[f"{P}/inside"]),
            [metadata(FOLDER, mode=0o700, reason=WAS_THERE)],
            id="a directory above a mount point",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700, flags=GHOST)),
            [],
            id="a ghost that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), unknown_old=True),
            [],
            id="a directory that may have been shipped",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, package="", mode=0o700), populate=True),
            [metadata(FOLDER, mode=0o700, reason=WAS_THERE)],
            id="populated: a directory of no package that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, package="", mode=0o700)),
            [keep(Rule.UNOWNED, "no package owns it; the image has another owner or mode")],
            id="a directory of no package that was there",
        ),
    ],
)
def test_owner_mode_and_acl(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)
