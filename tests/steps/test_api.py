"""What is said of the actions of a step."""

from __future__ import annotations

from ipavolume.steps import Command
from ipavolume.steps.api import describe


def test_of_a_script_among_a_commands_words_a_line_is_shown() -> None:
    script = "\nset -eu\nhost=$1\necho $host\n"
    command = Command(words=("sh", "-c", script, "sh", "a b"), reason="it moved")
    assert describe(command) == "run sh -c 'set -eu ...' sh 'a b' (it moved)"
