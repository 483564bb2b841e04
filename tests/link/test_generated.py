"""The generated code is what the schema gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generating_again_gives_the_same_files(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "link.proto"),
        ],
        cwd=ROOT / "link" / "proto",
        check=True,
    )
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {"link_pb2.py", "link_pb2.pyi"}
    for name, text in made.items():
        assert (ROOT / "link" / "generated" / name).read_text() == text
