"""The layers of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {  # from the bottom; a module may import its own layer and those below
    "vocabulary": "config config_file config_mistakes errors events exit_reason model_status",
    "decisions": """command gguf_reader gguf_utils load_log memory_compute memory_estimate model_shape
        placement policy usage""",
    "resources": """background binary control_client driver_thread footprint gpu_probe gpus kv_cache kv_store
        launcher learned list_devices_probe llama_process logging_server model_memory nvml_probe
        os_process page_cache pid_file ports queue runner upstream vram_tracker""",
    "orchestration": "health_monitor instance manager warmup",
    "observers": "load_reporter prometheus_metrics series telemetry",
    "api": """account documentation errand errors event_channel http_protocol metrics_feed models openai ops
        page relay render security services sessions status_feed""",
    "program": "cli config_check config_init logs main reload server run",
}
PURE = ("vocabulary", "decisions")
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
READS_FILES = {"app.core.gguf_reader", "app.core.config_file"}
"""Pure but for the file that they are asked to read."""

HTTP = {"fastapi", "starlette", "uvicorn", "sse_starlette"}
PROCESSES = {
    "heapq",
    "psutil",
    "pynvml",
    "signal",
    "subprocess",
    "app.core.binary",
    "app.core.launcher",
    "app.core.llama_process",
    "app.core.nvml_probe",
    "app.core.os_process",
    "app.core.pid_file",
    "app.core.ports",
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


def sources() -> dict[str, ast.Module]:
    files = [*sorted((ROOT / "app").rglob("*.py")), ROOT / "run.py"]
    return {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name: tree for name, tree in sources().items() if name not in ("app", "app.core", "app.api")}


def layer_of(module: str) -> str:
    package, _, name = module.rpartition(".")
    for layer, names in LAYERS.items():
        home = {"api": "app.api", "program": "app"}.get(layer, "app.core")
        if name in names.split() and (package == home or module == "run"):
            return layer
    raise AssertionError(f"{module} has no layer: give it one here and in docs/architecture.md")


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything that is imported, also inside functions, as modules; not what only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
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
    order = list(LAYERS)
    above = [
        name for name in own_imports(module) if order.index(layer_of(name)) > order.index(layer_of(module))
    ]
    assert not above, f"{module} ({layer_of(module)}) imports from above: {above}"


def test_no_module_imports_itself_round_a_corner() -> None:
    list(TopologicalSorter({name: own_imports(name) for name in MODULES}).static_order())


def test_every_module_of_the_table_exists() -> None:
    for layer, names in LAYERS.items():
        for name in names.split():
            home = {"api": "app.api.", "program": "app."}.get(layer, "app.core.")
            assert home + name in MODULES or name in MODULES, f"{layer}: {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("app.core.")])
def test_the_core_knows_no_web_framework(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & HTTP


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("app.api.")])
def test_the_api_knows_no_process_no_heap_and_no_driver(module: str) -> None:
    assert not set(imports(MODULES[module])) & PROCESSES


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("app.core.")])
def test_decisions_do_nothing(module: str) -> None:
    if layer_of(module) not in PURE:
        return
    used = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not used & NO_IO
    if module not in READS_FILES:
        calls = {n.func.id for n in ast.walk(MODULES[module]) if isinstance(n, ast.Call) and _is_name(n.func)}
        assert not calls & {"open", "print"}


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_level_object_is_changed(module: str) -> None:
    tree = MODULES[module]
    mutable = {name for statement in tree.body for name in _mutable_names(statement)}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"{module}:{node.lineno} global"
        for name in _changed_names(node):
            assert name not in mutable, f"{module}:{node.lineno} changes {name}"


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


def test_the_document_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [m for m in MODULES if f"`{m.rpartition('.')[2]}" not in text]
    assert not missing
