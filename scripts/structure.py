"""Measure the structure of the code under src/: lines of code by package, and imports between packages.

    scripts/structure.py                            this checkout
    scripts/structure.py --ref REF                  compared with a commit

A package is a file or folder at the top of src/snnexp. A line of code is a physical line with a token other than a
comment or docstring; a multi-line statement counts with all its lines. The number of statements does not depend on
line breaks.

A dependency is a package that another one imports, anywhere in its files. It is cyclic if it is part of a cycle. The
depth is the number of packages on the longest path of dependencies that are not cyclic. An import chain is the longest
path of modules along imports: those executed at import time, or all, including imports within functions and for type
checking. The length of a file counts all its lines.
"""

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
"""Longer files are listed."""
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Structure:
    """The measurements of one source tree."""

    lines: Counter[str]
    """Lines of code by package."""
    figures: dict[str, int]
    """All other measurements by name."""
    chain: list[str]
    """The longest import chain, along all imports."""
    large: list[tuple[int, str]]
    """Files above ``MAX_LINES``, the largest first."""


def checkout() -> dict[str, str]:
    """Return the sources of this checkout: path below src/ to text."""
    source = ROOT / "src"
    return {path.relative_to(source).as_posix(): path.read_text("utf-8") for path in sorted(source.rglob("*.py"))}


def committed(ref: str) -> dict[str, str]:
    """Return the sources of a commit."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", ref, "src"]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {entry.name: tar.extractfile(entry) for entry in tar if entry.name.endswith(".py")}
        return {name.removeprefix("src/"): file.read().decode() for name, file in files.items() if file is not None}


def measure(sources: Mapping[str, str]) -> Structure:
    """Measure the files of a tree.

    Args:
        sources: path below src/ to text.
    """
    trees = {path: ast.parse(text) for path, text in sources.items()}
    lines: Counter[str] = Counter()
    for path, text in sources.items():
        lines[package(module(path))] += len(code_lines(text, trees[path]))
    modules = {module(path): tree for path, tree in trees.items() if path.startswith("snnexp/")}
    at_import, in_all = (
        {name: imported(tree, modules.keys(), everywhere) - {name} for name, tree in modules.items()}
        for everywhere in (False, True)
    )
    packages: Graph = {package(name): set() for name in modules}
    for name, names in in_all.items():
        packages[package(name)] |= {package(other) for other in names} - {package(name)}
    back = {(one, other) for one, others in packages.items() for other in others if one in reached(packages, other)}
    forward = {one: {other for other in others if (one, other) not in back} for one, others in packages.items()}
    lengths = {path: text.count("\n") for path, text in sources.items()}
    chain = longest(in_all)
    figures = {
        "lines of code": lines.total(),
        "statements": sum(map(statements, trees.values())),
        "packages": len(packages),
        "depth of packages": len(longest(forward)),
        "dependencies": sum(map(len, packages.values())),
        "cyclic dependencies": len(back),
        "import chain at import time": len(longest(at_import)),
        "import chain of all imports": len(chain),
        "lines of the largest file": max(lengths.values()),
        f"files above {MAX_LINES} lines": sum(length > MAX_LINES for length in lengths.values()),
    }
    large = sorted(((length, path) for path, length in lengths.items() if length > MAX_LINES), reverse=True)
    return Structure(lines, figures, chain, large)


def module(path: str) -> str:
    """Return the module of a path: ``snnexp.data`` for ``snnexp/data/__init__.py``."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def package(name: str) -> str:
    """Return the package of a module: ``data`` for ``snnexp.data.mnist``, ``__init__`` for ``snnexp`` itself."""
    first, *rest = name.split(".")
    return first if first != "snnexp" else rest[0] if rest else "__init__"


def docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """Yield the docstrings of modules, classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and ast.get_docstring(node, clean=False) is not None:
                yield first


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Return the line numbers of code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = [range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in NO_CODE]
    documented = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in docstrings(tree)]
    return {line for span in spans for line in span} - {line for span in documented for line in span}


def statements(tree: ast.AST) -> int:
    """Return the number of statements, excluding docstrings."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) - sum(1 for _ in docstrings(tree))


def imported(tree: ast.AST, modules: Set[str], everywhere: bool) -> set[str]:
    """Return the modules that a module imports.

    Args:
        tree: its syntax tree.
        modules: all modules; an imported name counts as its module.
        everywhere: include imports within functions and for type checking.
    """
    names: set[str] = set()
    for node in walk(tree, everywhere):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if name in modules else name.rpartition(".")[0] for name in names} & modules


def walk(node: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    """Yield a node and its descendants: all, or those executed at import time."""
    yield node
    later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        later = True
    if everywhere or not later:
        for child in ast.iter_child_nodes(node):
            yield from walk(child, everywhere)


def reached(graph: Graph, start: str) -> set[str]:
    """Return all nodes reachable from a node, including itself."""
    found, todo = {start}, [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def longest(graph: Graph) -> list[str]:
    """Return the nodes of the longest path of an acyclic graph; ties are broken by name."""
    paths: dict[str, list[str]] = {}

    def path(node: str) -> list[str]:
        if node not in paths:
            paths[node] = [node, *max(map(path, sorted(graph[node])), key=len, default=[])]
        return paths[node]

    return max(map(path, sorted(graph)), key=len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", help="a commit to compare with")
    ref = parser.parse_args().ref
    here = measure(checkout())
    measured = {"here": here} if ref is None else {ref: measure(committed(ref)), "here": here}
    print(f"{'':28}" + "".join(f"{title[:12]:>13}" for title in measured))
    for name in here.figures:
        print(f"{name:28}" + "".join(f"{one.figures[name]:13,}" for one in measured.values()))
    print("\nlines of code by package")
    for name in sorted({name for one in measured.values() for name in one.lines}):
        print(f"{name:28}" + "".join(f"{one.lines.get(name) or '-':>13}" for one in measured.values()))
    print("\nlargest files of this checkout")
    for length, path in here.large:
        print(f"{length:5}  {path}")
    print("\nlongest import chain of this checkout\n" + "\n".join(f"  {name}" for name in here.chain))


if __name__ == "__main__":
    main()
