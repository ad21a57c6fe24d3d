"""What a package says of its files is given back as it was, in whatever number."""

from __future__ import annotations

import pytest

from ipavolume.model.files import FileFlags
from ipavolume.model.packages import RpmFile
from ipavolume.model.packedfiles import BLOCK, PackedFiles


def file(number: int) -> RpmFile:
    return RpmFile(
        path=f"/etc/odd \udce9/{number}",
        mode=0o100644,
        size=number << 33,
        digest="0f" * 32 if number % 2 else "",
        digest_algorithm="sha256" if number % 2 else "",
        target="../there" if number % 3 == 0 else "",
        owner="root",
        group="wheel",
        flags=FileFlags.CONFIG | FileFlags.NOREPLACE,
        capabilities="cap_net_raw=ep" if number == 1 else "",
        installed=number != 2,
    )


@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 1])
def test_files_come_back_as_they_were(count: int) -> None:
    files = [file(number) for number in range(count)]
    packed = PackedFiles(iter(files))
    assert list(packed) == files
    assert len(packed) == count
    assert packed == tuple(files)
    assert packed != (*files, file(count))
    assert packed[:3] == files[:3]
    if files:
        assert packed[-1] == files[-1]
        assert packed != (*files[:-1], file(count))
    with pytest.raises(IndexError):
        packed[count]
