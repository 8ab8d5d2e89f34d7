"""Reads syntax trees: what code refers to, and a text of it that formatting and Python's version do not change."""

from __future__ import annotations

import ast


def is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


IGNORED_FIELDS = {"ctx", "kind", "type_comment", "type_params", "returns"}
"""Of the syntax tree: those that say nothing, and annotations."""


def form(node: object, within: str = "module") -> str:
    """Return a text of a syntax tree without positions, docstrings, imports, annotations, and texts of messages.

    `within` is `module`, `class` or `function`: annotations count in the body of a class alone, where they make
    the fields of a dataclass.
    """
    if isinstance(node, list):
        return "[" + ",".join(filter(None, (form(item, within) for item in node if not _is_silent(item)))) + "]"
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!a}"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.AnnAssign) and within != "class":
        return form(ast.Assign([node.target], node.value), within) if node.value is not None else ""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return f"Raise({form(node.exc.func, within)})"
    values = {name: getattr(node, name, None) for name in node._fields}
    if isinstance(node, ast.ClassDef):
        values["body"], within = node.body if within == "function" else body_of_class(node), "class"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        within = "function"
    elif isinstance(node, ast.arg):
        values["annotation"] = None
    given = [
        f"{name}={form(value, within)}"
        for name, value in values.items()
        if name not in IGNORED_FIELDS and value is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(given)})"


def _is_silent(node: object) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or (
        isinstance(node, ast.AST) and (is_text(node) or _is_message(node))
    )


def _is_message(node: ast.AST) -> bool:
    """Return whether a statement only writes to the log."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    return (dotted_name(node.value.func) or "").partition(".")[0] == "logger"


def methods_of(owner: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [s for s in owner.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]


def parts_of(statement: ast.stmt) -> list[ast.AST]:
    """Return what of a statement is looked through for names: of a class all but its methods."""
    if not isinstance(statement, ast.ClassDef):
        return [statement]
    return [*statement.decorator_list, *statement.bases, *statement.keywords, *body_of_class(statement)]


def body_of_class(owner: ast.ClassDef) -> list[ast.stmt]:
    """Return the statements of a class but methods, texts, `version`, and the fields declared by `hp`."""

    def counts(statement: ast.stmt) -> bool:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Pass) or is_text(statement):
            return False
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id == "version":
            return False
        value = getattr(statement, "value", None)
        declares = isinstance(value, ast.Call) and (dotted_name(value.func) or "").rpartition(".")[2] == "hp"
        return not declares

    return [statement for statement in owner.body if counts(statement)]


class Uses(ast.NodeVisitor):
    """Collects the names that code uses, the attributes that it mentions, and what it imports itself."""

    def __init__(self, imports: dict[str, str], package: str) -> None:
        self.imports, self.package = imports, package
        self.names: set[str] = set()
        self.mentions: set[str] = set()
        self.texts: set[str] = set()
        self.by_text = False
        """Whether a name is looked up that only running the code would tell."""

    def visit_Expr(self, node: ast.Expr) -> None:
        if not _is_message(node):
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.mentions.add(node.attr)
        if (dotted := dotted_name(node)) is not None:
            self.names.add(dotted)
            self.mentions.update(dotted.split(".")[1:])
        else:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "methodcaller", "attrgetter"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            self.mentions.update(texts)
            self.by_text |= len(node.args) > 1 and not texts
        if isinstance(node.func, ast.Attribute) and node.func.attr == "__subclasses__":
            self.by_text = True
        if isinstance(node.func, ast.Name) and node.func.id == "cast":
            # A type in `cast` is not used: the value was made elsewhere.
            node = ast.Call(node.func, node.args[1:], node.keywords)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.by_text |= node.name == "__init_subclass__"
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.texts.add(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        note_import(node, self.package, self.imports, [])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        note_import(node, self.package, self.imports, [])


def dotted_name(node: ast.AST) -> str | None:
    """Return `a.b.c` of a chain of attributes, or of what is subscripted; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted_name(node.value) if not isinstance(node.value, ast.Subscript) else None
        return None if before is None else f"{before}.{node.attr}"
    if isinstance(node, ast.Subscript):
        return dotted_name(node.value)
    return None


def note_import(
    statement: ast.Import | ast.ImportFrom, package: str, imports: dict[str, str], stars: list[str]
) -> None:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            top = alias.name.partition(".")[0]
            imports[alias.asname or top] = alias.name if alias.asname else top
        return
    source = statement.module or ""
    if statement.level:
        parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
        source = ".".join([*parents, *([source] if source else [])])
    for alias in statement.names:
        if alias.name == "*":
            stars.append(source)
        else:
            imports[alias.asname or alias.name] = f"{source}.{alias.name}"
