"""Generate python/hisparse_sidecar/_proto from proto/, with the imports of the package."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "python" / "hisparse_sidecar" / "_proto"
PACKAGE = "hisparse_sidecar._proto"

# protoc writes imports from the root of the proto tree, which is no package of ours
_IMPORT = re.compile(r"^(from|import) hisparse\.v1", re.MULTILINE)


def main() -> int:
    """Write the generated package anew."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "_proto"
        generate(fresh)
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    return 0


def generate(target: Path) -> None:
    """Generate the package into the new folder `target`."""
    target.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    kinds = ("python", "pyi", "grpc_python", "mypy_grpc")
    stubs = Path(sys.executable).parent / "protoc-gen-mypy_grpc"  # of mypy-protobuf
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            f"--plugin=protoc-gen-mypy_grpc={stubs}",
            *(f"--{kind}_out={target}" for kind in kinds),
            *sources,
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")
    for path in target.rglob("*.py*"):
        _adopt(path)
    for folder in (target, target / "hisparse", target / "hisparse" / "v1"):
        (folder / "__init__.py").write_text('"""Generated from proto/ by `make proto`."""\n')


def _adopt(path: Path) -> None:
    """Give a generated file the imports of the package; drop the stubs of a file of no service."""
    text = path.read_text()
    if "_pb2_grpc" in path.name and "ServiceStub" not in text:
        path.unlink()
    else:
        path.write_text(_IMPORT.sub(rf"\1 {PACKAGE}.hisparse.v1", text))


if __name__ == "__main__":
    raise SystemExit(main())
