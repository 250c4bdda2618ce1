import ast
import inspect
from pathlib import Path

import hisparse_sidecar
from hisparse_sidecar import _core

STUB = ast.parse((Path(hisparse_sidecar.__file__).parent / "_core.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}


def stub_members(name: str) -> set[str]:
    """Public methods and properties of a class in the stub, inherited ones included."""
    node = CLASSES[name]
    own = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    own |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            own |= stub_members(base.id)
    return {member for member in own if not member.startswith("_")}


def test_the_stub_names_everything_that_the_core_has() -> None:
    public = {name for name in vars(_core) if not name.startswith("_")}
    described = {name for name in CLASSES if not name.startswith("_")} | FUNCTIONS
    assert described == public


def test_the_stub_names_every_member_of_every_class() -> None:
    for name in CLASSES:
        value = getattr(_core, name, None)
        if value is None or issubclass(value, Exception):
            continue
        real = {member for member in dir(value) if not member.startswith("_")}
        assert stub_members(name) == real, name


def test_the_version_is_that_of_the_package() -> None:
    assert _core.core_version().count(".") == 2
    assert inspect.isbuiltin(_core.core_version)


def test_page_operations_are_timed_over_at_least_as_many_as_asked() -> None:
    num_operations, seconds = _core.time_page_ops(100, 5000)
    assert num_operations >= 5000
    assert seconds > 0
