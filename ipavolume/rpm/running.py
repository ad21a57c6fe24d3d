"""How a scriptlet is run: its text, its command line, its environment."""

from __future__ import annotations

import difflib
from typing import Final

from ipavolume.config.model import ScriptletsConfig, Substitution
from ipavolume.rpm.scriptlets import LUA, Call, Catalogue, Scriptlet, named

PATH: Final = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/X11R6/bin"
"""What rpm sets ``PATH`` to (macro ``_install_script_path``)."""


def substituted(body: bytes, scriptlet: Scriptlet, config: ScriptletsConfig) -> bytes:
    """Return the text of a scriptlet with the configured replacements made in it."""
    for item in config.substitute:
        if is_substituted(scriptlet, item):
            body = body.replace(item.find.encode(), item.replace.encode())
    return body


def is_substituted(scriptlet: Scriptlet, item: Substitution) -> bool:
    """Tell whether a replacement is about a scriptlet's package."""
    return named(item.package, scriptlet)


def difference(body: bytes, scriptlet: Scriptlet, config: ScriptletsConfig) -> list[str]:
    """Return what the configured replacements change, as lines of a unified diff."""
    before, after = (
        text.decode("utf-8", "surrogateescape").splitlines()
        for text in (body, substituted(body, scriptlet, config))
    )
    return list(
        difflib.unified_diff(
            before, after, f"{scriptlet.name} (package)", f"{scriptlet.name} (runs)", lineterm=""
        )
    )


def expansions(call: Call, text: bytes) -> tuple[tuple[str, ...], ...]:
    """Return the command whose output is the text to run; none where it is the text itself.

    rpm expands macros first and tags of the header then. What else it says, of a macro that it
    finds wanting, would be part of the text, and run.

    Source:
        rpm ``lib/rpmscript.c``, ``rpmScriptNew()``.
    """
    scriptlet = call.scriptlet
    shown = text.decode("utf-8", "surrogateescape")
    package = f"{scriptlet.package}-{scriptlet.evr.rpartition(':')[2]}.{scriptlet.arch}"
    if scriptlet.expand and scriptlet.queryformat:
        script = 'text=$(rpm --eval "$1") && rpm -q --qf "$text" "$2"'
    elif scriptlet.expand:
        script = 'rpm --eval "$1"'
    elif scriptlet.queryformat:
        script = 'rpm -q --qf "$1" "$2"'
    else:
        return ()
    # Where it fails, there is no text, and what else rpm says is why.
    script = (
        f'expand() {{ {script}; }}; expand "$@" 2>/dev/null && exit; status=$?; '
        'expand "$@" >/dev/null; exit "$status"'
    )
    return (("/bin/sh", "-c", script, "sh", shown, package),)


def environment(scriptlet: Scriptlet) -> dict[str, str]:
    """Return what rpm puts into the environment of a scriptlet, which else is the caller's.

    Source:
        rpm ``lib/rpmscript.c``, ``doScriptExec()``.
    """
    result = {"PATH": PATH}
    for number, prefix in enumerate(scriptlet.prefixes):
        result[f"RPM_INSTALL_PREFIX{number}"] = prefix
    if scriptlet.prefixes:
        result["RPM_INSTALL_PREFIX"] = scriptlet.prefixes[0]
    return result


def argv(call: Call, catalogue: Catalogue, file: str) -> tuple[str, ...]:
    """Return the command line of a call.

    A ``<lua>`` scriptlet is run by rpm outside of any transaction: it finds its arguments as
    numbers behind ``"<lua>"`` in the table ``arg``, and where a relocatable package is in
    ``RPM_INSTALL_PREFIX``, as within one. ``rpm.next_file()``, which only file triggers need, is
    not there.

    Args:
        call: The call.
        catalogue: Says how the image runs lua.
        file: File with the text of the scriptlet, substituted and expanded.
    """
    scriptlet = call.scriptlet
    if not scriptlet.digest:
        return scriptlet.interpreter
    if scriptlet.interpreter[0] != LUA:
        return (*scriptlet.interpreter, file, *call.arguments)
    words = ", ".join(('"<lua>"', *call.arguments))
    code = f"_G.opt = {{}}; _G.arg = {{{words}}}; "
    if scriptlet.prefixes:
        code += f"_G.RPM_INSTALL_PREFIX = {{{', '.join(map(_lua_text, scriptlet.prefixes))}}}; "
    code += f"dofile({_lua_text(file)})"
    if catalogue.lua == "rpmlua":
        return ("rpmlua", "-e", code)
    return ("rpm", "--eval", f"%{{lua: {code}}}")


def _lua_text(text: str) -> str:
    """Write a text so that neither lua nor rpm's macros find anything to do in it."""
    data = text.encode("utf-8", "surrogateescape")
    return (
        '"' + "".join(chr(n) if n < 128 and chr(n).isalnum() else f"\\{n:03}" for n in data) + '"'
    )
