"""Which kernels a folder defines: a `@triton.jit` function that no other one uses."""

import ast
from pathlib import Path


def kernel_name(module: str, function: str) -> str:
    """`file.function`: functions of several files may share a name."""
    return f"{module.rpartition('.')[2]}.{function}"


def kernels_in(folder: Path) -> set[str]:
    """Names of the launched `@triton.jit` functions below a folder, as `kernel_name` says."""
    found = [
        (kernel_name(path.stem, function.name), function)
        for path in sorted(folder.rglob("*.py"))
        for function in _jitted(path)
    ]
    used = {name for _, function in found for name in _names_in(function)}
    return {name for name, function in found if function.name not in used}


def _jitted(path: Path) -> list[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if any(map(_is_jit, function.decorator_list))]


def _is_jit(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called) in ("triton.jit", "jit", "gluon.jit")


def _names_in(function: ast.FunctionDef) -> set[str]:
    return {
        node.id
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    } - {function.name}
