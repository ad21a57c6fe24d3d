"""Links in a directory's place; who can have put them there is in promises/hostile."""

from __future__ import annotations

import pytest
from support.plans import DIRECTORY, LINK, MOVED, D, at, keep
from support.values import record, thing

from ipavolume.model.actions import Rule
from ipavolume.model.files import LinkStanding


@pytest.mark.parametrize("standing", LinkStanding)
def test_a_directory_that_is_no_longer_shipped_is_left_where_a_link_took_its_place(
    standing: LinkStanding,
) -> None:
    link = thing("/big", LINK, standing=standing)
    world = at(record(D, kind=DIRECTORY), link, None)
    assert world.plan() == (keep(Rule.RELOCATED, MOVED, path=D),)
