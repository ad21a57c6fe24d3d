"""What a test of the first run executes inside of a container: the volumes are current.

Run as ``firstruninside.py [--only-ask] [--allow CODE]... [-- ARGUMENT...]``; prints how far the
first run is, and ends with the status that the error of a start has.
"""

from __future__ import annotations

import os
import sys

from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError
from ipavolume.firstrun import run
from ipavolume.firstrun import standing as firstrun
from ipavolume.firstrun.request import make_request
from ipavolume.volume.lock import Lock


def show(text: str) -> None:
    """Print a line at once, so that it stands where it belongs."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line of progress."""
    show(f"say: {text}")


def output(text: str) -> None:
    """Print a line that the command printed."""
    show(f"output: {text}")


def main() -> int:
    """Run it."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    options, arguments = words[:split], words[split + 1 :]
    only_ask = "--only-ask" in options
    allow = frozenset(word for word in options if not word.startswith("--"))
    try:
        with Lock(inside=True) as lock, Context(Options(allow=allow)) as context:
            lock.take(context.volumes.values(), say, timeout_s=0)
            asked = make_request(arguments, os.environ)
            if only_ask:
                show(f"due: {run.due(context, asked, say=say) is not None}")
            else:
                standing = firstrun.Standing.DONE
                if (ready := run.due(context, asked, say=say)) is not None:
                    standing = run.run(
                        context.image, context.volumes, ready, say=say, output=output
                    )
                show(f"standing: {standing}")
            show(f"now: {firstrun.standing(context.image, context.volumes)}")
    except IpaVolumeError as err:
        show(f"error: {err} [{err.code}]\nstate: {err.state}\nhint: {err.hint}")
        for line in err.details:
            show(f"detail: {line}")
        return err.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
