"""`python -m tools.sglang_signatures FOLDER`: what `engines/sglang` has as targets, from sources.

FOLDER holds an unpacked SGLang, which is parsed and not imported: a version whose PyTorch is not
installed can be looked at too. Prints JSON, as `tests/engines/sglang/signatures-*.json` have it.
"""

import ast
import json
import sys
from pathlib import Path

from hisparse_sidecar.engines.sglang.pool.pool_hooks import POOL_TARGETS
from hisparse_sidecar.engines.sglang.prefix.targets import PREFIX_TARGETS
from hisparse_sidecar.engines.sglang.start_checks import START_TARGETS
from hisparse_sidecar.engines.sglang.targets import ALL_TARGETS, Target

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def main(arguments: list[str]) -> int:
    """Prints the signatures that the sources have; exit status 2 without a folder."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    targets = (*ALL_TARGETS, *START_TARGETS, *POOL_TARGETS, *PREFIX_TARGETS)
    found = {target.path: signature_in(Path(arguments[0]), target) for target in targets}
    print(json.dumps(found, indent=1, sort_keys=True))
    return 0


def signature_in(folder: Path, target: Target) -> str | None:
    """A target's parameters, or a dataclass's fields, as `Target.difference` takes them."""
    path = folder / (target.module.replace(".", "/") + ".py")
    if not path.exists():
        return None
    node: ast.AST = ast.parse(path.read_text())
    for name in target.name.split("."):
        found = _named(node, name)
        if found is None:
            return None
        node = found
    if isinstance(node, ast.ClassDef):
        fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
        return ", ".join(field.id for field in fields if isinstance(field, ast.Name))
    assert isinstance(node, _Function)
    return _parameters(node)


def _named(node: ast.AST, name: str) -> ast.AST | None:
    """The class or function of that name, also behind an `if` of a module."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    within = [node] if isinstance(node, ast.ClassDef) else list(ast.walk(node))
    for parent in within:
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, kinds) and child.name == name:
                return child
    return None


def _parameters(node: _Function) -> str:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = len(plain) - len(arguments.defaults)
    written = [arg.arg + ("=" if i >= defaults else "") for i, arg in enumerate(plain)]
    if any(isinstance(one, ast.Name) and one.id == "classmethod" for one in node.decorator_list):
        written = written[1:]  # bound
    if arguments.vararg is not None:
        written.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        written.append("*")
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        written.append(arg.arg + ("" if default is None else "="))
    if arguments.kwarg is not None:
        written.append(f"**{arguments.kwarg.arg}")
    return f"({', '.join(written)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
