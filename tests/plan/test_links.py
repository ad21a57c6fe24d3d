"""Links in a directory's place; who can have put them there is in promises/hostile."""

from __future__ import annotations

import pytest
from support.plans import DIRECTORY, LINK, MOVED, D, at, keep
from support.values import Disk, record, thing

from ipavolume.errors import ObstructedError
from ipavolume.model.actions import Keep, Rule
from ipavolume.model.files import LinkStanding
from ipavolume.plan import links


@pytest.mark.parametrize("standing", LinkStanding)
def test_a_directory_that_is_no_longer_shipped_is_left_where_a_link_took_its_place(
    standing: LinkStanding,
) -> None:
    link = thing("/big", LINK, standing=standing)
    world = at(record(D, kind=DIRECTORY), link, None)
    assert world.plan() == (keep(Rule.RELOCATED, MOVED, path=D),)


@pytest.mark.parametrize(
    ("target", "uid", "is_fine"),
    [
        pytest.param("/data/big", 997, True, id="gets the new number"),
        pytest.param("../big", 997, True, id="relative"),
        pytest.param("/big", 997, False, id="keeps the old number"),
        pytest.param("../../big", 997, False, id="relative, off the volume"),
        pytest.param("/big", 995, True, id="has the new number"),
        pytest.param("/data/big", 996, False, id="somebody else's"),
        pytest.param("/data/disk/big", 997, False, id="on what is mounted below the volume"),
        pytest.param("/data/disk/big", 995, True, id="mounted, has the new number"),
    ],
)
def test_a_moved_directory_may_have_the_number_of_before_where_it_gets_the_new_one(
    target: str,
    uid: int,
    is_fine: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Elsewhere nothing is given other owners, so that the service could not use it any more."""
    path = "/data/log/app"
    before, now = (record(path, kind=DIRECTORY, uid=number) for number in (997, 995))
    view = Disk({path: thing(target, LINK, standing=LinkStanding.OWNED)})

    def moved() -> Keep | None:
        return links.moved(
            view,
            path,
            now,
            now,
            lambda _: thing(kind=DIRECTORY, uid=uid).state,
            before=before,
            mounts=["/data"],
            mounted=["/data/disk"],
        )

    if is_fine:
        assert moved() == keep(Rule.RELOCATED, MOVED, path=path)
        return
    with pytest.raises(ObstructedError, match="others may write to than in the image: it is 99"):
        moved()
