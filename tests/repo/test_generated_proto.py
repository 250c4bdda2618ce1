from pathlib import Path

import pytest

from tools import generate_proto
from tools.generate_proto import GENERATED, generate


def sources(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }


@pytest.mark.slow
def test_the_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    python = generate_proto._generator(tmp_path / "venv")
    generate(python, tmp_path / "_proto")
    fresh, committed = sources(tmp_path / "_proto"), sources(GENERATED)
    assert sorted(fresh) == sorted(committed)
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert stale == [], "run `make proto`"
