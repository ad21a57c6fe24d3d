"""What of a container is taken over into one that is to be like it, and what is not."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ipavolume.engines.likeness import LeftOut, Place, likeness

PLACE: Final = Place(volumes={"/data": "/clones/0"})
BARE: Final = ("--volume", "/clones/0:/data")


def options_of(engine: str = "docker", **host: Any) -> tuple[str, ...]:
    """Return the options for a container with this ``HostConfig``, but for those of every one."""
    found = likeness(engine, {"HostConfig": host}, {}, PLACE)
    return tuple(word for word in found.options if word not in BARE)


@pytest.mark.parametrize(
    ("host", "options"),
    [
        pytest.param({"CapAdd": ["CAP_NET_ADMIN"]}, ("--cap-add", "NET_ADMIN"), id="capability"),
        pytest.param({"CapDrop": ["ALL"]}, ("--cap-drop", "ALL"), id="capabilities dropped"),
        pytest.param({"ReadonlyRootfs": True}, ("--read-only",), id="read-only root"),
        pytest.param(
            {"Tmpfs": {"/run": "", "/tmp": "size=1g"}},
            ("--tmpfs", "/run", "--tmpfs", "/tmp:size=1g"),
            id="tmpfs",
        ),
        pytest.param({"CgroupnsMode": "host"}, ("--cgroupns", "host"), id="cgroups"),
        pytest.param({"Sysctls": {"net.x": "1"}}, ("--sysctl", "net.x=1"), id="sysctl"),
        pytest.param(
            {"SecurityOpt": ["label=disable"]}, ("--security-opt", "label=disable"), id="security"
        ),
        pytest.param(
            {"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}]},
            ("--ulimit", "nofile=1:2"),
            id="ulimit",
        ),
        pytest.param({"Memory": 1 << 30}, ("--memory", "1073741824"), id="memory"),
        pytest.param({"Memory": 0, "PidsLimit": -1}, (), id="no limits"),
        pytest.param(
            {"Dns": ["192.0.2.1"], "DnsSearch": ["x"]},
            ("--dns", "192.0.2.1", "--dns-search", "x"),
            id="DNS",
        ),
        pytest.param({"UsernsMode": "host"}, ("--userns", "host"), id="user namespace"),
        pytest.param({"Init": True}, ("--init",), id="init"),
        pytest.param(
            {
                "PortBindings": {"389/tcp": [{"HostPort": "389"}]},
                "RestartPolicy": {"Name": "always"},
                "NetworkMode": "host",
            },
            (),
            id="ports, restarts and networks are not",
        ),
    ],
)
def test_what_docker_says_is_taken_over(host: dict[str, Any], options: tuple[str, ...]) -> None:
    assert options_of(**host) == options


def test_what_podman_says_is_taken_over() -> None:
    found = {
        "Config": {
            "SystemdMode": True,
            "CreateCommand": ["podman", "run", "--sysctl", "a.b=1", "--sysctl=c.d=2", "image"],
        },
        "HostConfig": {
            "CgroupMode": "private",
            "IDMappings": {"UidMap": ["0:100000:65536"], "GidMap": ["0:100000:65536"]},
            "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1, "Hard": 2}],
        },
    }
    assert likeness("podman", found, {}, PLACE).options == (
        *("--systemd", "always", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"),
        *("--sysctl", "a.b=1", "--sysctl", "c.d=2", "--cgroupns", "private"),
        *("--ulimit", "nofile=1:2", *BARE),
    )


@pytest.mark.parametrize(
    ("host", "what"),
    [
        pytest.param({"Privileged": True}, "privileged", id="privileged"),
        pytest.param({"CapAdd": ["CAP_SYS_ADMIN"]}, "capability SYS_ADMIN", id="SYS_ADMIN"),
        pytest.param({"CapAdd": ["ALL"]}, "capability ALL", id="all capabilities"),
        pytest.param({"SecurityOpt": ['seccomp={"a":1}']}, "its seccomp profile", id="seccomp"),
        pytest.param({"Devices": [{"PathOnHost": "/dev/kvm"}]}, "device /dev/kvm", id="device"),
        pytest.param({"NetworkMode": "host"}, "the host's network", id="the host's network"),
        pytest.param(
            {"NetworkMode": "container:1"}, "another container's network", id="another's network"
        ),
        pytest.param({"PidMode": "host"}, "the host's processes", id="PID namespace"),
    ],
)
def test_what_reaches_the_host_is_left_out_and_named(host: dict[str, Any], what: str) -> None:
    found = likeness("docker", {"HostConfig": host}, {}, PLACE)
    assert [one.what for one in found.left_out] == [what]
    assert found.options == BARE


def mount(source: str, where: str, *, writable: bool = False, kind: str = "bind") -> dict[str, Any]:
    return {"Type": kind, "Source": source, "Destination": where, "RW": writable}


@pytest.mark.parametrize(
    ("mounted", "volume"),
    [
        pytest.param(mount("/srv/data", "/data", writable=True), None, id="its clone instead"),
        pytest.param(mount("/etc/ssl", "/ssl"), "/etc/ssl:/ssl:ro", id="read-only"),
        pytest.param(
            mount("/sys/fs/cgroup", "/sys/fs/cgroup"),
            "/sys/fs/cgroup:/sys/fs/cgroup:ro",
            id="cgroups",
        ),
        pytest.param(mount("/srv/export", "/export", writable=True), "", id="writable"),
        pytest.param(mount("/run/docker.sock", "/x"), "", id="below what has sockets"),
        pytest.param(mount("/", "/host"), "", id="above what has sockets"),
        pytest.param(mount("/srv/socket", "/socket"), "", id="a socket"),
        pytest.param(mount("/srv/a:b", "/b"), "", id="a colon"),
    ],
)
def test_other_mounts_are_taken_over_only_where_nothing_leads_out(
    mounted: dict[str, Any], volume: str | None
) -> None:
    place = Place(volumes={"/data": "/clones/0"}, sockets={"/srv/socket"})
    found = likeness("docker", {"Mounts": [mounted]}, {}, place)
    assert found.options == (*BARE, *(("--volume", volume) if volume else ()))
    named = [one.what for one in found.left_out]
    assert named == ([f"{mounted['Source']} at {mounted['Destination']}"] if volume == "" else [])


def test_what_comes_from_the_old_image_does_not_hide_what_the_new_one_says() -> None:
    image = {"Env": ["VERSION=1", "PATH=/bin"], "Cmd": ["serve"], "Entrypoint": ["/init"]}
    config: dict[str, Any] = {
        "Hostname": "ipa.example.test",
        "Env": ["VERSION=1", "PATH=/bin", "PASSWORD=Secret.123", "IPAVOLUME_ON_FAILURE=hold"],
        "Cmd": ["serve"],
        "Entrypoint": ["/init"],
        "User": "",
    }
    in_one = {**config, "Entrypoint": "/init --all"}
    both = {**image, "Entrypoint": ["/init", "--all"]}
    assert likeness("podman", {"Config": in_one}, both, PLACE).options[2:] == BARE
    found = likeness("docker", {"Config": config}, image, PLACE)
    assert found.options == ("--hostname", "ipa.example.test", *BARE)
    assert (found.words, found.environment) == ((), ("PASSWORD=Secret.123",))
    config |= {"Cmd": ["--debug"], "User": "7"}
    found = likeness("docker", {"Config": config}, image, PLACE)
    assert (found.words, found.options[2:4]) == (("--debug",), ("--user", "7"))
    config |= {"Entrypoint": ["sh", "-c"], "Cmd": ["exec /init"]}
    found = likeness("docker", {"Config": config}, image, PLACE)
    assert found.words == ("-c", "exec /init")
    assert found.options[-2:] == ("--entrypoint", "sh")


def test_what_may_be_of_an_image_that_is_gone_is_left_out_and_named() -> None:
    config: dict[str, Any] = {
        "Hostname": "ipa.example.test",
        "Env": ["VERSION=1", "PASSWORD=Secret.123"],
        "Cmd": ["serve"],
        "Entrypoint": ["/init"],
        "User": "",
        "WorkingDir": "/srv",
    }
    found = likeness("docker", {"Config": config}, None, PLACE)
    assert found.options == ("--hostname", "ipa.example.test", *BARE)
    assert (found.words, found.environment) == ((), ())
    (left_out,) = found.left_out
    assert left_out.what == "its environment, entrypoint, command, working directory"
    assert "--run-option=--env=" in left_out.why
    assert likeness("docker", {}, None, PLACE).left_out == ()


def test_without_a_network_its_name_leads_to_itself() -> None:
    found = {
        "Config": {"Hostname": "ipa", "Domainname": "example.test"},
        "HostConfig": {"ExtraHosts": ["ipa.example.test:192.0.2.9", "kdc:192.0.2.8"]},
    }
    place = Place(volumes={}, networked=False, volatile=["/tmp"], relabel=True)
    assert likeness("podman", found, {}, place).options == (
        *("--hostname", "ipa.example.test", "--add-host", "ipa.example.test:127.0.0.1"),
        *("--add-host", "kdc:192.0.2.8", "--tmpfs", "/tmp"),
    )


def test_podmans_secrets_are_named() -> None:
    found = likeness("podman", {"Config": {"Secrets": [{"Name": "key", "ID": "1"}]}}, {}, PLACE)
    assert [one.what for one in found.left_out] == ["secret key"]
    assert "--secret=key" in found.left_out[0].why


@pytest.mark.parametrize(
    ("given", "level"),
    [
        pytest.param([], ("--security-opt", "label=level:s0:c1,c2"), id="the engine's"),
        pytest.param(["label=level:s0:c7"], ("--security-opt", "label=level:s0:c7"), id="named"),
        pytest.param(["label=disable"], ("--security-opt", "label=disable"), id="none"),
    ],
)
def test_with_selinux_it_reads_what_the_other_container_reads(
    given: list[str], level: tuple[str, ...]
) -> None:
    found = {
        "ProcessLabel": "system_u:system_r:container_t:s0:c1,c2",
        "HostConfig": {"SecurityOpt": given},
        "Mounts": [mount("/etc/ssl", "/ssl")],
    }
    place = Place(volumes={"/data": "/clones/0"}, relabel=True)
    assert likeness("docker", found, {}, place).options == (
        *level,
        *("--volume", "/clones/0:/data:Z", "--volume", "/etc/ssl:/ssl:ro"),
    )
    assert "label=level:s0:c1,c2" not in likeness("docker", found, {}, PLACE).options


def test_why_it_is_left_out_says_how_it_is_had() -> None:
    found = likeness("docker", {"HostConfig": {"CapAdd": ["SYS_TIME"]}}, {}, PLACE)
    why = "it reaches the host: --run-option=--cap-add=SYS_TIME"
    assert found.left_out == (LeftOut(what="capability SYS_TIME", why=why),)
