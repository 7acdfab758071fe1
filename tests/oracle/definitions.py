"""A hash of every definition of a package, without docstrings and without where it stands.

A definition that only moved keeps its hash: the modules that names are imported from do not count, nor whether a name
is imported itself (`digest_json(...)`), under another name, or reached through its module (`digest.digest_json(...)`).
"""

from __future__ import annotations

import ast
import copy
import hashlib
from pathlib import Path

__all__ = ["definitions"]

_PACKAGE = "hf_clamu"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def definitions(package: Path) -> list[dict[str, str]]:
    """Return module, qualified name, hash, and a hash that leaves the name out, of each definition.

    Functions, methods, classes (without their methods) and the values that a module assigns count. A function holds
    what is defined inside it.

    Args:
        package (`Path`): the folder of the package.
    """
    modules = {_module(path, package): path for path in sorted(package.rglob("*.py"))}
    found: list[dict[str, str]] = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree = _Normal(tree, set(modules)).visit(tree)
        _collect(tree.body, module, "", found)
    return sorted(found, key=lambda entry: (entry["module"], entry["name"], entry["hash"]))


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _collect(body: list[ast.stmt], module: str, outer: str, found: list[dict[str, str]]) -> None:
    for node in body:
        if isinstance(node, _DEFINITIONS):
            name = outer + node.name
            own = copy.copy(node)
            if isinstance(node, ast.ClassDef):
                _collect(node.body, module, f"{name}.", found)
                own.body = [part for part in node.body if not isinstance(part, _DEFINITIONS)]
            nameless = copy.copy(own)
            nameless.name = ""
            found.append({"module": module, "name": name, "hash": _hash(own), "body": _hash(nameless)})
        elif not outer and isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = ", ".join(ast.unparse(target) for target in targets)
            if name != "__all__" and node.value is not None:
                found.append({"module": module, "name": name, "hash": _hash(node), "body": _hash(node.value)})
        elif not outer and isinstance(node, (ast.If, ast.Try, ast.With)):
            for field in ("body", "orelse", "finalbody"):
                _collect(getattr(node, field, []), module, outer, found)
        elif not outer and isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            text = ast.unparse(node)
            found.append({"module": module, "name": f"<{text[:60]}>", "hash": _hash(node), "body": _hash(node)})


def _hash(node: ast.AST) -> str:
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]


class _Normal(ast.NodeTransformer):
    """Removes docstrings, and calls what the package imports from itself by its own name."""

    def __init__(self, tree: ast.Module, modules: set[str]) -> None:
        self._names: dict[str, str] = {}
        self._modules: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE:
                for alias in node.names:
                    name = alias.asname or alias.name
                    if f"{node.module}.{alias.name}" in modules:
                        self._modules.add(name)
                    else:
                        self._names[name] = alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == _PACKAGE and alias.asname:
                        self._modules.add(alias.asname)

    def visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, *_DEFINITIONS)) and body and _is_text(body[0]):
            node.body = body[1:]
        return super().visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        # An import inside a function says nothing but where names come from.
        return None if (node.module or "").split(".")[0] == _PACKAGE else node

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        node.names = [alias for alias in node.names if alias.name.split(".")[0] != _PACKAGE]
        return node if node.names else None

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._names.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self._modules:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
