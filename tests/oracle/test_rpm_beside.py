"""What no combination of old, disk and new says: paths that are shared, moved or in the way."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Final

import pytest
from support.differential import build_tree, make_tree, read_tree, upgrade_both_ways

pytestmark = [
    pytest.mark.root,
    pytest.mark.rpm,
    pytest.mark.slow,
]


def test_paths_that_are_shared_that_move_or_were_not_installed_end_as_with_rpm(
    tmp_path: Path,
) -> None:
    config, noreplace = "%config", "%config(noreplace)"
    one = build_tree(
        tmp_path,
        1,
        {"shared": "file old", "moved": "file old", "doc": "file old", "doc2": "file old"},
        {
            "some": ["/f/shared", f"{config} %doc /f/doc", f"{noreplace} %doc /f/doc2"],
            "other": ["/f/shared"],
            "legacy": [f"{noreplace} /f/moved"],
        },
    )
    two = build_tree(
        tmp_path,
        2,
        {"shared": "file old", "moved": "file new", "doc": "file new", "doc2": "file new"},
        {
            "some": [f"{config} %doc /f/doc", f"{noreplace} %doc /f/doc2"],
            "other": ["/f/shared"],
            "modern": [f"{noreplace} /f/moved"],
        },
        {"modern": "Obsoletes: legacy\n"},
    )

    def edit(root: Path) -> None:
        for name in ("shared", "moved", "doc", "doc2"):
            (root / "f" / name).write_text("mine")

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit, words=["--excludedocs"])
    expected = {
        "moved": "file mine",
        "moved.rpmnew": "file new",
        "doc": "file new",
        "doc.rpmorig": "file mine",
        "doc2": "file mine",
        "doc2.rpmnew": "file new",
        "shared": "file old",
    }
    assert read_tree(pair.host / "f") == expected
    assert read_tree(pair.volume / "f") == expected
    assert read_tree(pair.saved / "f") == {"shared": "file mine"}


def test_a_path_that_only_one_of_its_packages_drops_stays(tmp_path: Path) -> None:
    one = build_tree(
        tmp_path,
        1,
        {"plain": "file old", "edited": "file old", "config": "file old"},
        {name: ["/f/plain", "/f/edited", "%config /f/config"] for name in ("some", "other")},
    )
    two = build_tree(tmp_path, 2, {}, {"some": []})

    def edit(root: Path) -> None:
        for name in ("edited", "config"):
            (root / "f" / name).write_text("mine")

    pair = upgrade_both_ways(tmp_path, one[:1], two, ["/f/"], edit, unchanged=one[1:])
    expected = {"plain": "file old", "edited": "file mine", "config": "file mine"}
    assert read_tree(pair.host / "f") == expected
    assert read_tree(pair.volume / "f") == expected


@pytest.mark.parametrize("config", ["%config", "%config(noreplace)"])
@pytest.mark.parametrize("owners", [("some", "other"), ("other", "some")])
def test_what_one_package_ships_and_another_one_may_have_is_put_as_by_rpm(
    tmp_path: Path, config: str, owners: tuple[str, str]
) -> None:
    """Of the one that ships it no byte came to a volume: it was the other one's ghost."""
    ships, may_have = owners
    names = ("plain", "edited", "gone")
    one, two = (
        build_tree(
            tmp_path,
            version,
            dict.fromkeys(names, f"file {text}"),
            {
                ships: [f"/f/{name}" for name in names],
                may_have: [f"{config} %ghost /f/{name}" for name in names],
            },
        )
        for version, text in ((1, "old"), (2, "new"))
    )

    def edit(root: Path) -> None:
        (root / "f/edited").write_text("mine")
        (root / "f/gone").unlink()

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit)
    found = dict.fromkeys(names, "file new")
    # rpm takes the other one's word for it that they are config files, edited or not.
    copies = {"plain.rpmsave": "file old", "edited.rpmsave": "file mine"}
    assert read_tree(pair.host / "f") == found | copies
    assert read_tree(pair.volume / "f") == found
    assert read_tree(pair.saved / "f") == {"edited": "file mine"}


def test_a_copy_whose_name_is_taken_by_a_directory_or_too_long_goes_elsewhere(
    tmp_path: Path,
) -> None:
    long = "n" * 246  # more would be too long for the temporary names that rpm makes
    one, two = (
        build_tree(
            tmp_path,
            version,
            {"taken": f"file {text}", long: f"file {text}"},
            {"some": ["%config /f/taken"], "other": [f"%config /f/{long}"]},
        )
        for version, text in ((1, "old"), (2, "new"))
    )

    def edit(root: Path) -> None:
        for name in ("taken", long):
            (root / "f" / name).write_text("mine")
        make_tree(root / "f", {"taken.rpmsave": "directory", f"{long}.rpmsave": "file older"})

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit, rpm_fails=True)
    assert read_tree(pair.host / "f") == {
        "taken": "file mine",
        "taken.rpmsave": "directory",
        long: "file new",
        f"{long}.rpmsave": "file mine",
    }
    assert read_tree(pair.volume / "f") == {
        "taken": "file new",
        "taken.rpmsave": "directory",
        "taken.rpmsave.1": "file mine",
        long: "file new",
        f"{long}.rpmsave": "file older",
    }
    assert read_tree(pair.saved / "f") == {long: "file mine"}


LINKS: Final = {
    "dangling": "/nowhere/at/all",
    "dangling-relative": "../nowhere",
    "directory": "../own",
    "directory-outside": "/usr",
    "directory-inside": "/data/f/own",
    "file": "../own.txt",
}
BROUGHT: Final = {
    "alone": ["%dir /f/{}/x"],
    "with-file": ["%dir /f/{}/x", "/f/{}/x/child"],
    "with-config": ["%dir /f/{}/x", "%config(noreplace) /f/{}/x/child"],
    "with-directory": ["%dir /f/{}/x", "%dir /f/{}/x/deeper"],
    "ghost": ["%ghost %dir /f/{}/x"],
}


def test_a_link_where_a_new_package_brings_a_directory_ends_as_with_rpm(tmp_path: Path) -> None:
    """F8: it was refused, or the package's files were nowhere.

    Only where rpm puts files behind the link, here the link makes way and is kept.
    """
    cases = {f"{link}-{what}": (link, what) for link, what in product(LINKS, BROUGHT)}
    tree: dict[str, str] = {}
    lines = []
    for name, (_, what) in cases.items():
        tree |= {name: "directory", f"{name}/x": "directory"}
        tree |= {f"{name}/x/child": "file child"} if "/x/child" in BROUGHT[what][-1] else {}
        tree |= {f"{name}/x/deeper": "directory"} if "deeper" in BROUGHT[what][-1] else {}
        lines += [line.format(name) for line in BROUGHT[what]]
    one = build_tree(
        tmp_path,
        1,
        dict.fromkeys(cases, "directory"),
        {"some": [f"%dir /f/{name}" for name in cases]},
    )
    two = build_tree(tmp_path, 2, tree, {"some": [*(f"%dir /f/{name}" for name in cases), *lines]})

    def edit(root: Path) -> None:
        make_tree(root / "f", {"own": "directory", "own.txt": "file own"})
        if (root / "var/lib/rpm").is_dir():
            (root / "data/f/own").mkdir(parents=True)
            (root / "usr").mkdir(exist_ok=True)
        for name, (link, _) in cases.items():
            (root / "f" / name / "x").symlink_to(LINKS[link])

    pair = upgrade_both_ways(tmp_path, one, two, ["/f/"], edit)
    rpm, ours, saved = (read_tree(top / "f") for top in (pair.host, pair.volume, pair.saved))
    for name, (link, what) in cases.items():
        below = {path: value for path, value in tree.items() if path.startswith(f"{name}/x")}
        here = {path: value for path, value in ours.items() if path.startswith(f"{name}/x")}
        by_rpm = {path: value for path, value in rpm.items() if path.startswith(f"{name}/x")}
        stays = {f"{name}/x": f"link {LINKS[link]}"}
        assert by_rpm == (stays if "directory" in link or what == "ghost" else below), name
        # From a host, as here, nobody can tell whether what is off the volumes is in the container.
        unknown = link == "dangling" and len(below) == 1
        if (by_rpm == stays or unknown) and len(below) == 1:
            assert here == stays, name
            assert f"{name}/x" not in saved
        else:
            assert here == below, name
            assert saved[f"{name}/x"] == stays[f"{name}/x"]
    assert read_tree(pair.volume / "f/own") == {}
