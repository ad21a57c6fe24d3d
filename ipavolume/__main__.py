"""The command. A start on a current volume loads next to nothing; see ``fastpath``."""

import gc
import os
import sys


def main() -> int:
    """Run the command line; return its exit status."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Or a volume would be opened there, and what is printed written to it. What is
            # executed finds it closed, as we did.
            os.open(os.devnull, os.O_RDONLY)
    if __package__ in (None, ""):
        # Run as a file with -I -S by the launcher, which knows where the package is.
        sys.path.append(__file__.rpartition("/ipavolume/")[0])
    if sys.argv[1:4] == ["start", "--", "ipavolume"]:
        # "docker run IMAGE ipavolume check": our commands are not what a container is started
        # for, so that the volume is left alone. The wrapper for init does the same.
        del sys.argv[1:4]
    if len(sys.argv) > 1 and sys.argv[1] == "start":
        from ipavolume import fastpath

        fastpath.start(sys.argv[2:])
    if "site" not in sys.modules or sys.flags.no_site:
        import site

        site.main()
    # What a run loads and holds, some 40,000 objects, is there until its end. Of what it lets go,
    # however many files there are, some 500 refer to each other, and need the collector; it
    # looks for them when it would be worth it, not a hundred times amid the loading.
    gc.set_threshold(100_000)
    from ipavolume.cli.main import run

    return run()


def end() -> None:
    """Run the command line, and end the process with its status.

    What is printed is out, and nothing is left for the interpreter to do at its end, which takes
    as long as all that a small run writes.
    """
    try:
        status = main()
    except SystemExit as err:
        if not isinstance(err.code, int):
            raise
        status = err.code
    os._exit(status)


if __name__ == "__main__":
    end()
