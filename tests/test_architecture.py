"""The layers of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (  # from the bottom: a folder, or a file that stands between them; each may import what stands below
    "app/domain",
    "app/judgement",
    "app/gguf",
    "app/core/config.py",
    "app/configuration",
    "app/access",
    "app/llama/output",
    "app/llama",
    "app/llama/builds",
    "app/memory/probes",
    "app/memory/estimate",
    "app/memory/ledger",
    "app/core/vram_tracker.py",
    "app/memory",
    "app/core/queue.py",
    "app/scheduling",
    "app/models",
    "app/core/manager.py",
    "app/core/health_monitor.py",
    "app/core/warmup.py",
    "app/observability",
    "app/core/prometheus_metrics.py",
    "app/proxy/dialects",
    "app/proxy/dialects/ollama",
    "app/proxy/dialects/responses",
    "app/proxy",
    "app/api",
    "app/api/ollama",
    "app",
    "app/cli",
    "run.py",
)
PURE = (
    "app.core.config",
    "app.domain",
    "app.gguf",
    "app.judgement",
    "app.configuration",
    "app.llama.command_line",
    "app.llama.child_environment",
    "app.llama.exit_reason",
    "app.llama.load_output",
    "app.llama.pooling",
    "app.llama.llama_server_errors",
    "app.memory.estimate",
    "app.memory.ledger",
    "app.proxy.json_fields",
    "app.proxy.dialects",
    "app.proxy.token_usage",
    "app.scheduling",
)
NOT_PURE = {
    "app.domain.alarm",
    "app.domain.background",
    "app.domain.event_bus",
    "app.domain.jobs",
}
"""What stands among them and waits, or tells others."""

NO_IO = {
    "aiohttp",
    "anyio",
    "asyncio",
    "httpx",
    "psutil",
    "pynvml",
    "shutil",
    "socket",
    "subprocess",
    "threading",
    "time",
}
READS_FILES = {
    "app.domain.atomic_files",
    "app.gguf.digest",
    "app.gguf.header_parser",
    "app.configuration.file",
}
"""Pure but for the file that they are asked to read, or to write."""

HTTP = {"fastapi", "starlette", "uvicorn", "sse_starlette"}
PROCESSES = {
    "heapq",
    "psutil",
    "pynvml",
    "signal",
    "subprocess",
    "app.llama.binary",
    "app.llama.launcher",
    "app.llama.child_process",
    "app.llama.llama_runner",
    "app.memory.probes.nvml",
    "app.llama.os_calls",
    "app.llama.orphans",
    "app.llama.ports",
}
MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTATORS = {
    "add",
    "append",
    "clear",
    "discard",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "setdefault",
    "update",
}


MOST_FIELDS, MOST_METHODS = 20, 25
LARGE = {
    "Metrics": "a field for each metric",
    "SystemConfig": "one field a key of the section in the configuration",
    "Services": "one field an object that is built once; it does nothing itself",
    "ModelView": "a snapshot: one field a fact that is decided on or shown, and nothing acts on it",
    "ModelInstance": "one method an input of the lifecycle or of the process, most of them one line",
    "Exchange": "one method an input of the state machine, or a question about where it stands",
    "Evidence": "a record: one field a fact, one method an observation; it judges nothing",
}
"""Why a class has more fields or methods than that, in one line."""


def sources() -> dict[str, ast.Module]:
    files = [*sorted((ROOT / "app").rglob("*.py")), ROOT / "run.py"]
    return {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name: tree for name, tree in sources().items() if tree.body}


def path_of(module: str) -> str:
    return module.replace(".", "/") + ".py"


def layer_of(module: str) -> str:
    """The folder or file of `LAYERS` that says most about where the module stands."""
    path = path_of(module)
    homes = [layer for layer in LAYERS if path == layer or path.startswith(layer + "/")]
    assert homes, f"{module} has no layer: give its folder one here and in docs/architecture.md"
    return max(homes, key=len)


def is_pure(module: str) -> bool:
    return module not in NOT_PURE and any(module == name or module.startswith(name + ".") for name in PURE)


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything that is imported, also inside functions and for types only, as modules."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        else:
            yield from imports(node)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(MODULES[module]) if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    here = LAYERS.index(layer_of(module))
    above = [name for name in own_imports(module) if LAYERS.index(layer_of(name)) > here]
    assert not above, f"{module} ({layer_of(module)}) imports from above: {above}"


def test_no_module_imports_itself_round_a_corner() -> None:
    list(TopologicalSorter({name: own_imports(name) for name in MODULES}).static_order())


def test_every_folder_has_a_layer_of_its_own() -> None:
    folders = {path_of(module).rpartition("/")[0] for module in MODULES if module != "run"}
    assert folders - {"app/core"} <= set(LAYERS), "app/core has none: each of its files has its own"


def test_every_layer_exists() -> None:
    assert [layer for layer in LAYERS if not (ROOT / layer).exists()] == []


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in MODULES
        if layer_of(m) not in ("app/proxy", "app/api", "app/api/ollama", "app", "app/cli", "run.py")
    ],
)
def test_the_core_knows_no_web_framework(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & HTTP


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("app.api.")])
def test_the_api_knows_no_process_no_heap_and_no_driver(module: str) -> None:
    assert not set(imports(MODULES[module])) & PROCESSES


@pytest.mark.parametrize("module", [m for m in MODULES if is_pure(m)])
def test_decisions_do_nothing(module: str) -> None:
    used = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not used & NO_IO
    if module not in READS_FILES:
        called = [node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
        assert not {f.id for f in called if isinstance(f, ast.Name)} & {"open", "print"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_level_object_is_changed(module: str) -> None:
    tree = MODULES[module]
    mutable = {name for statement in tree.body for name in _mutable_names(statement)}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"{module}:{node.lineno} global"
        for name in _changed_names(node):
            assert name not in mutable, f"{module} changes {name}"


def _mutable_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, MUTABLE_DISPLAYS):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _changed_names(node: ast.AST) -> Iterator[str]:
    changed: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        changed = [t.value for t in node.targets if isinstance(t, ast.Subscript)]
    elif isinstance(node, ast.AugAssign):
        changed = [node.target.value if isinstance(node.target, ast.Subscript) else node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        changed = [node.func.value]
    yield from (expression.id for expression in changed if isinstance(expression, ast.Name))


def test_the_document_names_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [layer for layer in LAYERS if layer.count("/") and f"`{layer}`" not in text]
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_more_than_300_lines(module: str) -> None:
    lines = (ROOT / path_of(module)).read_text(encoding="utf-8").count("\n")
    assert lines <= 300, "find the second subject in it"


@pytest.mark.parametrize("module", MODULES)
def test_who_catches_everything_says_why(module: str) -> None:
    lines = (ROOT / path_of(module)).read_text(encoding="utf-8").splitlines()
    handlers = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.ExceptHandler)]
    broad = [
        h
        for h in handlers
        if h.type is None or (isinstance(h.type, ast.Name) and h.type.id in ("Exception", "BaseException"))
    ]
    silent = [f"{module}:{h.lineno}" for h in broad if "  # " not in lines[h.lineno - 1]]
    assert not silent, "catch what can happen, or say why it is everything"


CLASSES = {
    node.name: node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_large_class_has_its_reason(name: str) -> None:
    fields, methods = _fields(CLASSES[name]), _methods(CLASSES[name])
    is_large = len(fields) > MOST_FIELDS or len(methods) > MOST_METHODS
    assert is_large == (name in LARGE), (
        f"{len(fields)} fields, {len(methods)} methods: find the second subject"
    )


def _methods(of: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in of.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _fields(of: ast.ClassDef) -> set[str]:
    """Those that the class declares, and those that its methods assign to `self`."""
    declared = {
        n.target.id for n in of.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    stored = (
        node
        for method in _methods(of)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )
    return declared | {n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self"}


TESTS = sorted(path for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_imports_another(path: Path) -> None:
    """What several need is in a library beside them."""
    found = [name for name in imports(ast.parse(path.read_text(encoding="utf-8"))) if ".test_" in name]
    assert not found
