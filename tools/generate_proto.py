"""Generate python/hisparse_sidecar/_proto from proto/, with the imports of the package.

Generated code refuses a runtime older than its generator, so an old generator is used: the one
of the oldest grpcio and protobuf that pyproject.toml allows. It gets an environment of its own.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "python" / "hisparse_sidecar" / "_proto"
PACKAGE = "hisparse_sidecar._proto"
GENERATOR = "grpcio-tools==1.75.0"  # writes code for grpcio >= 1.75.0, protobuf >= 6.31.1
STUBS = Path(sys.executable).parent / "protoc-gen-mypy_grpc"  # of mypy-protobuf

# protoc writes imports from the root of the proto tree, which is no package of ours
_IMPORT = re.compile(r"^(from|import) hisparse\.v1", re.MULTILINE)


def main() -> int:
    """Write the generated package anew."""
    with tempfile.TemporaryDirectory() as folder:
        python, fresh = _generator(Path(folder) / "venv"), Path(folder) / "_proto"
        generate(python, fresh)
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    return 0


def generate(python: Path, target: Path) -> None:
    """Generate the package into the new folder `target`, with the protoc that `python` has."""
    target.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    plugin = f"--plugin=protoc-gen-mypy_grpc={STUBS}"
    command = [str(python), "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", plugin]
    ended = subprocess.run([*command, *outputs, *sources], capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(ended.stderr)
    for path in target.rglob("*.py*"):
        _adopt(path)
    for folder in (target, target / "hisparse", target / "hisparse" / "v1"):
        (folder / "__init__.py").write_text('"""Generated from proto/ by `make proto`."""\n')


def _generator(folder: Path) -> Path:
    """The interpreter of a new environment that has the generator."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([python, *install, GENERATOR, "setuptools"], check=True)
    return python


def _adopt(path: Path) -> None:
    """Give a generated file the imports of the package; drop the stubs of a file of no service."""
    text = path.read_text()
    if "_pb2_grpc" in path.name and "ServiceStub" not in text:
        path.unlink()
    else:
        path.write_text(_IMPORT.sub(rf"\1 {PACKAGE}.hisparse.v1", text))


if __name__ == "__main__":
    raise SystemExit(main())
