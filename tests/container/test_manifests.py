"""The compose file and the Kubernetes manifest of the example are right, and they run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from support.command import PROJECT
from support.containers import (
    LIMIT_S,
    PASSWORD,
    PREFIX,
    Container,
    compose_command,
    composed,
    engine,
    need_images,
    remove_volume,
)
from support.engines import need_docker
from support.remapping import Engine

KUBERNETES: Final = PROJECT / "ipavolume/examples/freeipa/kubernetes.yaml"
REHEARSAL: Final = PROJECT / "ipavolume/examples/freeipa/rehearsal.yaml"
COMPOSE: Final = PROJECT / "ipavolume/examples/freeipa/compose.yaml"
VERSIONS: Final = ("1.30", "1.33", "1.36")
"""Of Kubernetes: the oldest with everything in the manifest, and those that its comments name."""
STORY: Final = (("small:1", "version 1\n"), ("small:2", "version 1\nversion 2\n"))
"""The images that run one after the other, and what the service has written then."""


def _documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def _rehearsal() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(REHEARSAL.read_text())}


def _server() -> dict[str, Any]:
    (found,) = [one for one in _documents() if one["kind"] == "StatefulSet"]
    assert isinstance(found, dict)
    return found


def _pod() -> dict[str, Any]:
    found = _server()["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def _container() -> dict[str, Any]:
    (found,) = _pod()["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_is_what_the_api_of_kubernetes_takes(version: str) -> None:
    for document in (*_documents(), *_rehearsal().values()):
        validated = kubernetes_validate.validate(document, version, strict=True)
        assert validated == version


def _misspelt(server: dict[str, Any]) -> None:
    container = server["spec"]["template"]["spec"]["containers"][0]
    container["startUpProbe"] = container.pop("startupProbe")


def _misplaced(server: dict[str, Any]) -> None:
    server["spec"]["hostUsers"] = server["spec"]["template"]["spec"].pop("hostUsers")


def _mistyped(server: dict[str, Any]) -> None:
    server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "5m"


@pytest.mark.parametrize("spoil", [_misspelt, _misplaced, _mistyped])
def test_a_mistake_in_the_manifest_would_be_seen(spoil: Callable[[dict[str, Any]], None]) -> None:
    server = _server()
    spoil(server)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(server, VERSIONS[-1], strict=True)


def test_the_pod_is_run_as_an_upgrade_needs_it() -> None:
    pod, container = _pod(), _container()
    # The entry point is the image's, and it is the main container's.
    assert "command" not in container
    assert "initContainers" not in pod
    assert "livenessProbe" not in container
    # Room for an upgrade of an hour, and to finish what it does when it is stopped.
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 3600
    assert startup["timeoutSeconds"] > 10
    assert pod["terminationGracePeriodSeconds"] >= 120
    # One server, which takes a new image when somebody says so.
    assert _server()["spec"]["replicas"] == 1
    assert _server()["spec"]["updateStrategy"] == {"type": "OnDelete"}
    # A group that may write to the volume's root would make it unsafe.
    assert "fsGroup" not in pod["securityContext"]


def test_a_rehearsal_is_the_same_pod_with_another_volume_and_nothing_to_reach() -> None:
    found = _rehearsal()
    policy, pod = found["NetworkPolicy"]["spec"], found["Pod"]
    assert policy == {
        "podSelector": {"matchLabels": pod["metadata"]["labels"]},
        "policyTypes": ["Ingress", "Egress"],
    }
    (service,) = (one for one in _documents() if one["kind"] == "Service")
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert {"name": "IPAVOLUME_REHEARSAL", "value": "1"} in container["env"]
    assert container["securityContext"] == _container()["securityContext"]
    mounts = [one for one in _container()["volumeMounts"] if one["name"] != "password"]
    assert container["volumeMounts"] == mounts
    assert pod["spec"]["restartPolicy"] == "Never"
    claim = found["PersistentVolumeClaim"]
    server = _server()
    (template,) = server["spec"]["volumeClaimTemplates"]
    original = f"{template['metadata']['name']}-{server['metadata']['name']}-0"
    assert claim["spec"]["dataSource"]["name"] == original
    assert claim["spec"]["resources"] == template["spec"]["resources"]


def test_compose_and_quadlet_run_it_as_the_pod_does() -> None:
    quadlet: dict[str, list[str]] = {}
    for line in (COMPOSE.parent / "ipa.container").read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            quadlet.setdefault(key, []).append(value)
    (service,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    container = _container()
    assert quadlet["Image"] == [service["image"]] == [container["image"]]
    assert quadlet["Exec"][0].split() == service["command"] == container["args"]
    probe = container["readinessProbe"]["exec"]["command"]
    assert quadlet["HealthCmd"][0].split() == service["healthcheck"]["test"][1:] == probe
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    passing = {"/run", "/tmp", "/volatile"}
    assert set(quadlet["Tmpfs"]) == set(service["tmpfs"]) == passing
    assert passing | {"/data"} <= mounts
    assert quadlet["ReadOnly"] == ["true"]
    # Ready when the server is, within the time that an upgrade may take; what is refused stays so.
    assert quadlet["Notify"] == ["healthy"]
    assert quadlet["TimeoutStartSec"] == quadlet["HealthStartPeriod"]
    assert quadlet["RestartPreventExitStatus"] == ["65 78"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def _options(secrets: Path) -> list[str]:
    """Return the options of podman that make what the manifest says of pod and container.

    podman play kube would make it as well, but only where it may make the control group of a
    pod in every hierarchy.
    """
    pod, container = _pod(), _container()
    context = container["securityContext"]
    assert pod["setHostnameAsFQDN"] is True
    options = ["--hostname", "ipa-0.ipa.default.svc.cluster.local"]
    options += ["--read-only", "--read-only-tmpfs=false"] * context["readOnlyRootFilesystem"]
    options += ["--cap-drop", *context["capabilities"]["drop"]]
    options += [f"--cap-add={name}" for name in context["capabilities"]["add"]]
    options += [f"--env={item['name']}={item['value']}" for item in container["env"]]
    options += ["--stop-timeout", str(pod["terminationGracePeriodSeconds"])]
    kinds = {volume.pop("name"): volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        match kinds.get(mount["name"]):
            case {"emptyDir": {"medium": "Memory"}}:
                options += ["--tmpfs", mount["mountPath"]]
            case {"secret": _}:
                options += ["--volume", f"{secrets}:{mount['mountPath']}:ro"]
            case None:
                assert mount == {"name": "data", "mountPath": "/data"}
            case other:
                raise AssertionError(other)
    return options


@pytest.mark.root
@pytest.mark.slow
def test_the_container_of_the_manifest_runs_and_takes_a_new_image(
    rootful: Engine, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "password").write_text(PASSWORD)
    volume = tmp_path / "data"
    volume.mkdir(mode=0o755)
    for image, journal in STORY:
        with rootful.booted(image, volume, options=_options(secrets)) as name:
            for probe in ("startupProbe", "readinessProbe"):
                rootful.call("exec", name, *_container()[probe]["exec"]["command"])
            path = _container()["env"][0]["value"]
            read = rootful.call("exec", name, "cat", "/var/lib/svc/journal", path).stdout
            assert read == f"{journal}{PASSWORD}"
            written = rootful.call("exec", name, "touch", "/etc/x", status=None)
            assert "Read-only file system" in written.stderr
            rootful.call("stop", name)


# -- compose -----------------------------------------------------------------------------


def test_the_compose_file_is_what_compose_takes() -> None:
    need_docker()
    words = [*compose_command().split(), "-f", str(COMPOSE), "config"]
    done = subprocess.run(words, capture_output=True, check=True, text=True, timeout=LIMIT_S)
    server = yaml.safe_load(done.stdout)["services"]["server"]
    assert server["read_only"] is True
    assert server["healthcheck"]["test"] == ["CMD", "ipavolume", "status", "--probe", "ready"]
    assert "entrypoint" not in server


def _until_healthy(server: Container) -> None:
    server.until(lambda: server.inspect()["State"]["Health"]["Status"] == "healthy")


@pytest.mark.root
@pytest.mark.slow
def test_the_service_of_the_compose_file_runs_and_takes_a_new_image(tmp_path: Path) -> None:
    need_images("small:1", "small:2")
    project = "ipavolume-test-compose"
    (tmp_path / "password").write_text(PASSWORD)
    file = tmp_path / COMPOSE.name
    file.write_text(COMPOSE.read_text())
    try:
        for image, journal in STORY:
            service = {
                "image": f"{PREFIX}/{image}",
                # The small image has no first run, so it takes no arguments of one.
                "command": [],
                "network_mode": "none",
                # What systemd needs where control groups are of version 1.
                "cap_add": ["SYS_ADMIN"],
                "healthcheck": {"interval": "1s"},
            }
            with composed(str(file), tmp_path, project, service) as (server, _):
                _until_healthy(server)
                read = server.run("cat", "/var/lib/svc/journal", "/run/secrets/password").stdout
                assert read == f"{journal}{PASSWORD}"
                engine("stop", server.name)
                assert server.inspect()["State"]["ExitCode"] in (0, 130)
    finally:
        remove_volume(project)
