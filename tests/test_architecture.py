"""The architecture holds, and what checks it catches who breaks it."""

from __future__ import annotations

import pytest
from support.architecture import LAYERS, PACKAGE, find_violations, read_sources
from support.command import PROJECT


def test_the_package_keeps_to_the_architecture() -> None:
    sources = read_sources(PROJECT / PACKAGE)
    assert "errors" in sources
    assert find_violations(sources) == []


def test_no_module_has_two_layers() -> None:
    assert sum(len(layer) for layer in LAYERS) == len(frozenset().union(*LAYERS))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        pytest.param("planner", "from ipavolume import fate, model", id="downwards"),
        pytest.param("manifest", "from ipavolume.model import Record", id="two layers down"),
        pytest.param("planfile", "from ipavolume import manifest", id="own layer, no cycle"),
        pytest.param("prepare", "from ipavolume import __version__", id="the package's own name"),
        pytest.param("lifecycle", "import ipavolume.fastpath", id="anybody knows the fast path"),
        pytest.param("__main__", "import click\nfrom ipavolume import cli", id="main, anything"),
        pytest.param("cli", "import click", id="click in cli"),
        pytest.param("fate", "from os import fsencode, fsdecode", id="names of files"),
        pytest.param("fastpath", "import os, sys, errno", id="fast path, built in"),
        pytest.param("fsops", "import os\nos.rename('a', 'b')", id="fsops renames"),
        pytest.param("journal", "open('a', 'wb')", id="journal writes"),
        pytest.param("parallel", "import os\nos.fork()", id="parallel forks"),
        pytest.param("processes", "import subprocess", id="processes runs rpm"),
        pytest.param("scan", "import os\nos.open('a', os.O_RDONLY)", id="opened for reading"),
        pytest.param("scan", "open('a')\nopen('a', 'rb')", id="read"),
        pytest.param("scan", "from pathlib import Path\nPath().open('rb')", id="read by pathlib"),
        pytest.param("prepare", "def f(v): v.rename('a')", id="a method of ours"),
        pytest.param("prepare", "from ipavolume import fsops\nfsops.mkdir(1)", id="through fsops"),
        pytest.param("scan", "def f(tree): tree.open('data')", id="an open of ours"),
        pytest.param("cli", "import os\nos.execv('a', ['a'])", id="handing over to a command"),
        pytest.param("report", "x = 'a'.replace('a', 'b')", id="replace of a string"),
        pytest.param("report", "def f(os): os.rename('a')", id="another thing called os"),
    ],
)
def test_what_the_rules_allow(module: str, text: str) -> None:
    assert find_violations({module: text}) == []


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        pytest.param("fate", "import ipavolume.planner", "above", id="upwards"),
        pytest.param("fate", "from ipavolume import planner", "above", id="upwards by from"),
        pytest.param("fate", "from ipavolume.planner import x", "above", id="upwards for a name"),
        pytest.param("fate", "from . import planner", "above", id="upwards, relative"),
        pytest.param("fate", "from .planner import x", "above", id="upwards, relative name"),
        pytest.param("fate", "def f():\n import ipavolume.cli", "above", id="upwards, late"),
        pytest.param(
            "fate",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from ipavolume import cli",
            "above",
            id="upwards, for types only",
        ),
        pytest.param("cli", "import ipavolume.__main__", "nobody imports", id="main imported"),
        pytest.param("novelty", "", "has no layer", id="unknown module"),
        pytest.param("sub.fate", "", "has no layer", id="sub-package"),
        pytest.param("utils", "", "named after what it knows", id="utils"),
        pytest.param("sub.helpers", "", "named after what it knows", id="helpers below"),
        pytest.param("lifecycle", "import click", "is for cli", id="click"),
        pytest.param("state", "from packaging.version import V", "for versions", id="packaging"),
        pytest.param(
            "preparation.rpmdb", "import rpmfile.headers", "for preparation.rpmheader", id="rpmfile"
        ),
        pytest.param("prepare", "import subprocess", "for processes", id="subprocess"),
        pytest.param("scan", "import asyncio", "for no module", id="asyncio"),
        pytest.param("state", "import shutil", "for fsops, journal", id="shutil"),
        pytest.param("state", "import ctypes", "for fsops, journal", id="ctypes"),
        pytest.param("state", "import os\nos.fork()", "for parallel", id="fork"),
        pytest.param("state", "from os import fork", "for parallel", id="fork by from"),
        pytest.param("state", "import os as o\no.system('a')", "for parallel", id="renamed os"),
        pytest.param("state", "import os\nos.rename('a', 'b')", "fsops and", id="rename"),
        pytest.param("state", "import posix\nposix.unlink('a')", "fsops and", id="posix"),
        pytest.param("state", "from os import chown as c", "fsops and", id="chown, renamed"),
        pytest.param("state", "import os\nf = os.mkdir", "fsops and", id="passed on, not called"),
        pytest.param("state", "import os\nos.open('a', os.O_WRONLY)", "fsops and", id="O_WRONLY"),
        pytest.param("state", "open('a', 'w')", "for writing", id="open for writing"),
        pytest.param("state", "open('a', mode='r+b')", "for writing", id="open for update"),
        pytest.param("state", "def f(m): open('a', m)", "for writing", id="open, who knows how"),
        pytest.param("state", "import io\nio.open('a', 'x')", "for writing", id="io.open"),
        pytest.param("state", "def f(p): p.open('ab')", "for writing", id="method open"),
        pytest.param("state", "def f(p): p.write_text('a')", "fsops and", id="write_text"),
        pytest.param(
            "state", "from pathlib import Path\nPath('a').unlink()", "fsops and", id="Path.unlink"
        ),
        pytest.param("planner", "import os", "does not act", id="os where it is decided"),
        pytest.param("planner", "from os import stat", "does not act", id="stat, likewise"),
        pytest.param("model", "import pathlib", "does not act", id="pathlib, likewise"),
        pytest.param("steps", "import subprocess", "does not act", id="subprocess, likewise"),
        pytest.param("fastpath", "import re", "fast path", id="heavy import"),
        pytest.param("fastpath", "def f():\n import json", "fast path", id="heavy import, late"),
        pytest.param("fastpath", "from ipavolume import errors", "fast path", id="own import"),
        pytest.param("__init__", "from ipavolume.cli import main", "fast path", id="init"),
        pytest.param("cli", "__import__('re')", "computed name", id="computed import"),
        pytest.param(
            "cli",
            "import importlib\nimportlib.import_module('re')",
            "computed name",
            id="importlib",
        ),
    ],
)
def test_what_breaks_a_rule_is_found(module: str, text: str, message: str) -> None:
    found = find_violations({module: text})
    assert any(violation.startswith(f"{module}:") and message in violation for violation in found)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            {"scan": "import ipavolume.state", "state": "import ipavolume.scan"}, id="two modules"
        ),
        pytest.param(
            {
                "scan": "import ipavolume.state",
                "state": "def f():\n from ipavolume import config",
                "config": "from ipavolume.scan import x",
            },
            id="three, one late",
        ),
    ],
)
def test_a_cycle_in_a_layer_is_found(texts: dict[str, str]) -> None:
    found = find_violations(texts)
    assert len([text for text in found if "imported by what it imports" in text]) == len(texts)


def test_a_violation_names_module_and_line() -> None:
    assert find_violations({"state": "\n\nimport click\n"}) == [
        "state:3: imports click, which is for cli"
    ]
