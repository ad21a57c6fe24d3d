"""Which listed paths an image no longer has in the same place, compared as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pytest

from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.plan.moved import moved_paths

VOLATILE: Final = "/tmp"
Lists = Mapping[str, Sequence[str]]


def image(lists: Lists, *, profile: Sequence[str] = ()) -> ImageHeader:
    """Return the header of an image with these lists; ``/tmp`` is volatile."""
    return ImageHeader(
        build_id="x",
        volumes=tuple(
            VolumeSpec(
                mount=mount,
                template=f"{mount}-template",
                volatile=mount == VOLATILE,
                entries=tuple(entries),
                profile=tuple(entry for entry in entries if entry in profile),
            )
            for mount, entries in lists.items()
        ),
    )


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        pytest.param({"/data": ["/a"]}, {"/data": ["/a", "/b"]}, {}, id="the same, and more"),
        pytest.param({"/data": ["/a/b"]}, {"/data": ["/a"]}, {}, id="a parent"),
        pytest.param({"/data": ["/a", "/ab"]}, {"/data": ["/a"]}, {"/data/ab": ""}, id="no parent"),
        pytest.param({"/data": ["/a"]}, {"/data": ["/b"]}, {"/data/a": ""}, id="not any more"),
        pytest.param({"/data": ["/a"]}, {"/data": ["/a/b"]}, {"/data/a": ""}, id="a child"),
        pytest.param(
            {"/data": ["/a"]}, {"/data": [], "/db": ["/a"]}, {"/data/a": "/db"}, id="another volume"
        ),
        pytest.param(
            {"/data": ["/a"]},
            {"/data": ["/a"], "/db": ["/a/b"]},
            {"/data/a/b": "/db"},
            id="a part of it on another volume",
        ),
        pytest.param(
            {"/data": ["/a"], "/db": ["/a/b"]},
            {"/data": ["/a"], "/db": ["/a/b"]},
            {},
            id="a part of it on another volume, as before",
        ),
        pytest.param(
            {"/data": ["/a"], "/db": ["/a/b"]},
            {"/data": ["/a"]},
            {"/a/b": "/data"},
            id="a volume that is gone",
        ),
        pytest.param(
            {"/data": ["/a"]}, {"/data": [], "/tmp": ["/a"]}, {"/data/a": "/tmp"}, id="volatile now"
        ),
        pytest.param({"/data": [], "/tmp": ["/a"]}, {"/data": []}, {}, id="was volatile"),
        pytest.param({"/data": ["/a"]}, {"/srv": ["/a"]}, {}, id="mounted elsewhere"),
        pytest.param({"/data": ["/a"]}, {"/srv": []}, {"/srv/a": ""}, id="mounted elsewhere, gone"),
    ],
)
def test_what_moved(old: Lists, new: Lists, moved: Mapping[str, str]) -> None:
    """F25: where it was on the volumes as they are mounted now, and the volume that has it now."""
    found = moved_paths(image(old), image(new))
    assert {one.place: one.volume.mount if one.volume else "" for one in found} == moved


def test_what_the_profiles_own_lists_had_is_left_out() -> None:
    """F25: that is a step's care."""
    old = image({"/data": ["/etc/ipa", "/own"]}, profile=["/etc/ipa"])
    assert [one.entry for one in moved_paths(old, image({"/data": []}))] == ["/own"]


@pytest.mark.parametrize(("profile", "told"), [(["/etc/ipa"], []), ([], ["/etc/ipa", "/own"])])
def test_an_old_manifest_does_not_say_what_was_of_the_profile(
    profile: Sequence[str], told: Sequence[str]
) -> None:
    """F25: then it is not known; an image without a profile is asked all the same."""
    old = image({"/data": ["/etc/ipa", "/own"]})
    new = image({"/data": profile}, profile=profile)
    assert [one.entry for one in moved_paths(old, new)] == told


def test_what_is_told_by_itself_is_not_told_twice() -> None:
    old, new = {"/data": ["/a"]}, {"/data": ["/a/kept"], "/db": ["/a/moved"]}
    whole, part = moved_paths(image(old), image(new))
    assert (whole.entry, set(whole.apart)) == ("/a", {"/a/kept", "/a/moved"})
    assert (part.entry, set(part.apart)) == ("/a/moved", {"/a/kept"})
