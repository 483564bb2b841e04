"""A plug-in runs only if its exact bytes are those that the site's people pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASK = '''
"""The task heart under another name."""
from conf import schema
from twin import tasks
from mytask.inner import NAME

def build(config):
    assert config.name == NAME
    return tasks.build(schema.Task(name="heart"))
'''
ASK = """
import json, sys
from client import plugins
from client.errors import ClientError
from conf.schema import Model, Task
pins = json.loads(sys.argv[1])
try:
    exec(sys.argv[2])
    task = plugins.build_task(Task(name="mytask"), pins)
    print("built", task.name, plugins.build_model(Model(name="linear"), task, pins).__class__.__name__)
    import mytask.inner
    print("from", mytask.inner.__loader__.__class__.__name__)
except ClientError as error:
    print(error.code, error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A distribution as an installer leaves it: package, metadata, entry points, list of files."""
    package, info = tmp_path / "mytask", tmp_path / "mytask-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(TASK)
    (package / "inner.py").write_text('NAME = "mytask"\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mytask\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[twinward.tasks]\nmytask = mytask:build\n")
    _list(tmp_path, "mytask/__init__.py", "mytask/inner.py")
    return tmp_path


def _list(folder: Path, *files: str) -> None:
    info = "mytask-1.0.dist-info"
    names = [*files, f"{info}/METADATA", f"{info}/entry_points.txt", f"{info}/RECORD"]
    (folder / info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def _python(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", *words],
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _sum(folder: Path) -> str:
    listing = "from client import plugins\nfor p in plugins.installed(): print(p.key, p.sha256 or p.fault)"
    key, _, digest = _python(folder, listing).strip().partition(" ")
    assert key == "twinward.tasks:mytask"
    return digest


def _ask(folder: Path, digest: str, before: str = "") -> str:
    import json

    return _python(folder, ASK, json.dumps({"twinward.tasks:mytask": digest}), before)


def test_a_pinned_plug_in_runs_from_the_bytes_that_were_summed(folder: Path) -> None:
    assert _ask(folder, _sum(folder)) == "built heart Network\nfrom _Verified\n"


def test_listing_plug_ins_runs_none_of_their_code(folder: Path) -> None:
    (folder / "mytask" / "__init__.py").write_text("raise SystemExit(3)\n")
    assert len(_sum(folder)) == 64


def test_a_plug_in_that_nobody_pinned_does_not_run(folder: Path) -> None:
    assert _python(folder, ASK, "{}", "").startswith("plugin_refused")


@pytest.mark.parametrize("changed", ["mytask/inner.py", "mytask-1.0.dist-info/entry_points.txt"])
def test_one_changed_byte_refuses_it(folder: Path, changed: str) -> None:
    digest = _sum(folder)
    (folder / changed).write_text((folder / changed).read_text() + "\n")
    assert _ask(folder, digest).startswith("plugin_refused")


def test_a_compiled_file_beside_it_does_not_run(folder: Path) -> None:
    """Python would take `__pycache__` in place of a source with the same time and size."""
    import py_compile

    digest, inner = _sum(folder), folder / "mytask" / "inner.py"
    good = inner.read_text()
    inner.write_text('NAME = "evil!!"\n')
    py_compile.compile(
        str(inner), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    inner.write_text(good)
    assert _ask(folder, digest).startswith("built heart")


def test_a_plug_in_that_was_imported_before_it_was_checked_is_refused(folder: Path) -> None:
    assert "imported before" in _ask(folder, _sum(folder), "import mytask.inner")


@pytest.mark.parametrize("name", ["mytask/fast.so", "mytask.pth"])
def test_what_cannot_be_held_to_its_sum_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("import os\n")
    _list(folder, "mytask/__init__.py", "mytask/inner.py", name)
    assert "cannot be held" in _sum(folder)
    assert _ask(folder, "a" * 64).startswith("plugin_refused")


def test_an_editable_installation_is_refused(folder: Path) -> None:
    _list(folder)
    assert "editable" in _sum(folder)
