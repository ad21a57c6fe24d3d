"""Containers with an installer that behaves as a test wants, and the volumes they meet."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support import inside
from support.command import PROJECT, Result
from support.images import Image, Packaged, build_rpm
from support.upgrades import Site

NAME: Final = "ipa.example.test"
CONFIG: Final = 'profile = "freeipa"\n[scriptlets]\npackages = []\n'
LISTS: Final = {"/data": ["/etc/ipa/", "/var/lib/ipa/", "/root/ipa.csr", "/etc/app/"]}

INSTALLER: Final = r"""#!/bin/sh
# What FreeIPA's installers leave, in their order.
echo "installing with $*"
echo "PASSWORD is ${PASSWORD-unset}"
sed 's/^/hosts: /' /etc/hosts
echo run >> /data/runs
name=${0##*/}
test "$name" = ipa-server-install || echo "as $name"
stage=1
die=
for word in "$@"; do
  case "$word" in
    --bad) echo "no such option: --bad" >&2; exit 2;;
    --external-ca) stage=csr;;
    --external-cert-file=/data/missing) echo "cannot read it" >&2; exit 1;;
    --external-cert-file=*) stage=2;;
    --die=*) die=${word#--die=};;
  esac
done
reach() {
  case "$die" in
    # Its parent watches over it, and that one's is the run.
    "$1") kill -9 $(cut -d ' ' -f 4 /proc/$PPID/stat); exit 137;;
    "fail-$1") echo "failed at $1" >&2; exit 1;;
  esac
}
reach start
mkdir -p /var/lib/ipa/sysrestore
printf '[installation]\ncomplete = False\n' > /var/lib/ipa/sysrestore/sysrestore.state
echo '[files]' > /var/lib/ipa/sysrestore/sysrestore.index
reach ruins
if test $stage = csr; then
  echo request > /root/ipa.csr
  reach csr
  exit 0
fi
echo certificate > /etc/ipa/ca.crt
reach certificate
printf '[installation]\ncomplete = True\n' > /var/lib/ipa/sysrestore/sysrestore.state
reach end
"""


@dataclass(kw_only=True)
class FirstRun:
    """A container of an image with an installer, on one volume.

    Attributes:
        image: The image.
        volume: The volume, populated.
        name: Host name of the container.
    """

    image: Image
    volume: Path
    name: str = NAME

    def run(
        self,
        *arguments: str,
        status: int | None = 0,
        allow: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> Result:
        """Start a container whose volume is current; it is not process 1, so it can be killed."""
        driver = PROJECT / "tests/support/firstruninside.py"
        words = [*prefix, sys.executable, str(driver), *options, *allow, "--", *arguments]
        # The machine's console is none of the container's.
        script = 'mount --bind /dev/null /dev/console; hostname "$0"; "$@"; exit $?'
        argv = ["unshare", "--uts", "sh", "-c", script, self.name, *words]
        done = inside.run(self.image.root, self.volume, argv, env=env)
        assert status in (None, done.returncode), (done.returncode, done.stdout, done.stderr)
        return done

    def ask(self, *arguments: str, status: int = 0, **more: Any) -> Result:
        """Start one that does not run it, and says whether it would."""
        return self.run(*arguments, status=status, options=["--only-ask"], **more)

    def record(self) -> dict[str, Any]:
        """Return what is recorded."""
        value = json.loads((self.volume / ".ipavolume/first-run.json").read_bytes())
        assert isinstance(value, dict)
        return value

    def history(self) -> list[dict[str, Any]]:
        """Return what the history has of it, oldest first."""
        lines = (self.volume / ".ipavolume/history.jsonl").read_text().splitlines()
        return [run for run in map(json.loads, lines) if run["kind"] == "first-run"]

    def runs(self) -> int:
        """Return how often the installer was started."""
        path = self.volume / "runs"
        return len(path.read_text().splitlines()) if path.exists() else 0


def build_package(top: Path, *, version: str = "1") -> Path:
    """Build a package with a configuration of FreeIPA's."""
    content = Packaged(path="/etc/ipa/default.conf", words="%config(noreplace)", content="x")
    return build_rpm(top, "freeipa-server", [content], version=version)


def make(package: Path, top: Path, *, config: str = CONFIG, build_id: str = "one") -> FirstRun:
    """Make an image with an installer, and populate its volume."""

    def edit(image: Image) -> None:
        for path in (
            "/usr/sbin/ipa-server-install",
            "/usr/sbin/ipa-replica-install",
            "/usr/sbin/app-setup",
        ):
            image.write(path, INSTALLER, mode=0o755)
        image.write("/etc/app/app.conf", "x\n")
        image.write("/etc/hosts", "127.0.0.1 localhost\n10.0.0.2 0f3c\n")
        for directory in ("var/lib/ipa", "root"):
            (image.root / directory).mkdir(parents=True)

    site = Site(top=top)
    image = site.image(build_id, [package], lists=LISTS, config=config, edit=edit)
    volume = site.volume()
    site.upgrade(image)
    return FirstRun(image=image, volume=volume)
