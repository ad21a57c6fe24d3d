"""A server without systemd: what ``ipavolume start`` executes is its process."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import containers, site
from support.containers import READ_ONLY, WRITABLE, Container


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    containers.need_images("plain:1", "plain:2", "derived:2")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a volume of version 1 with records that were added by dynamic updates."""
    work = tmp_path_factory.mktemp("plain")
    volume = work / "volume"
    volume.mkdir()
    service = {"image": f"{containers.PREFIX}/plain:1"}
    with containers.composed(
        "plain.yaml", work, f"ipavolume{work.name}", service, volume=volume
    ) as (container, services):
        services.wait_until_responsive(
            check=lambda: site.is_serving(container), timeout=containers.LIMIT_S, pause=0.2
        )
        site.add_records(container)
        container.stop()
    containers.remove_volume(f"ipavolume{work.name}")
    return volume


@pytest.fixture
def volume(filled: Path, tmp_path: Path) -> Path:
    return containers.copy(filled, tmp_path)


def until_serving(container: Container) -> None:
    container.until(lambda: site.is_serving(container))


def test_the_server_is_the_first_process_and_stops_at_once(volume: Path) -> None:
    with containers.container("plain:1", volume) as container:
        until_serving(container)
        assert container.shell("tr '\\0' ' ' < /proc/1/cmdline").startswith("/usr/sbin/named -g")
        assert site.records_of(container) == site.EXPECTED.records
        assert container.stop() == 0


def test_other_words_are_executed_instead_of_the_server(volume: Path) -> None:
    command = ("cat", "/etc/bind/named.conf.local")
    with containers.container("plain:1", volume, command=command) as container:
        assert container.wait() == 0
        assert 'zone "example.test"' in container.logs()
        assert "handing over to cat" in container.logs()


def test_the_next_release_serves_what_the_first_one_was_told(volume: Path) -> None:
    with containers.container("plain:2", volume) as container:
        until_serving(container)
        assert site.records_of(container) == site.EXPECTED.records
        assert "scriptlet bind9-post 2: done" in container.logs()
        ours = container.shell("stat -c %U /var/cache/bind /var/lib/bind/example.test.zone")
        assert ours.split() == ["root", "bind"]


def test_a_derived_image_brings_its_path_and_its_step(volume: Path) -> None:
    with containers.container("plain:2", volume) as container:
        until_serving(container)
        container.stop()
    with containers.container("derived:2", volume) as container:
        until_serving(container)
        assert container.shell("cat /etc/site/motd") == "The DNS server of our site.\n"
        version = ("dig", "+short", "@127.0.0.1", "version.bind", "CH", "TXT")
        assert container.run(*version).stdout.strip() == '"none"'
        assert 'version "none"' in container.shell("cat /etc/bind/named.conf.options")
        assert "s5010_hide_the_version: done" in container.logs()
        assert site.records_of(container) == site.EXPECTED.records


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE], ids=["read-only", "writable"])
def test_nothing_is_written_outside_the_volume(volume: Path, options: tuple[str, ...]) -> None:
    with containers.container("plain:2", volume, options=options) as container:
        until_serving(container)
        site.add_records(container)
        assert containers.engine("diff", container.name) == ""


def test_the_image_says_what_a_volume_is_without_starting_on_it(volume: Path) -> None:
    inside = containers.engine(
        *("run", "--rm", "--read-only", "--network", "none", "-v", f"{volume}:/data:ro"),
        *(f"{containers.PREFIX}/plain:2", "ipavolume", "check"),
        check=False,
    )
    assert inside.startswith("/data: outdated")


@pytest.mark.parametrize("more", [(), ("--init",), ("--pid=host",)], ids=["alone", "init", "host"])
def test_the_volume_is_the_containers_and_the_command_has_nothing_of_it(
    volume: Path, more: tuple[str, ...]
) -> None:
    """F40, F43: in whichever way the engine runs the command."""
    options = (*READ_ONLY, *more)
    script = ("sh", "-c", "readlink /proc/$$/fd/*; echo it runs; sleep 300 & wait")
    with containers.container("plain:1", volume, options=options, command=script) as first:
        first.until(lambda: "it runs" in first.logs())
        assert "/data" not in first.logs().partition("handing over")[2]
        assert first.run("ipavolume", "upgrade").status == 0
        with containers.container("plain:1", volume, options=options, command=("true",)) as second:
            assert second.wait() == 75
            assert f"container {first.inspect()['Id'][:12]} of host " in second.logs()
        first.kill()
        first.wait()
    with containers.container("plain:1", volume, options=options, command=("true",)) as third:
        assert third.wait() == 0
