"""Imports go strictly one way: from the rooms of the house to those below them, inside functions too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import saferule

PACKAGE = Path(saferule.__file__).parent
LAYERS = (  # from the bottom; rooms of one layer know nothing of each other
    {"errors"},
    {"environment", "files", "limits"},
    {"paper"},
    {"sim"},
    {"data"},
    {"agents", "attack", "detect"},
    {"unlearn", "theory"},
    {"runs"},
    {"report"},
    {"doctor"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports anywhere in it, also for types only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in named}
    return {name for name in found if name in MODULES and name != module}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "saferule"


def test_every_room_has_its_layer():
    assert {room(module) for module in MODULES} - {"saferule"} == set(LEVEL)
    assert not imports("saferule")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    wrong = [
        other
        for other in imports(module)
        if room(other) not in ("saferule", room(module)) and LEVEL[room(other)] >= LEVEL[room(module)]
    ]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which is not below it"


def test_no_module_imports_itself_by_a_detour():
    try:
        TopologicalSorter({module: imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' -> '.join(error.args[1])}")


def test_the_environment_is_read_in_one_place():
    """The package's own file writes defaults for others before any of them is imported; it imports nothing."""
    for module, path in MODULES.items():
        found = [name for name in ("os.environ", "getenv", "envvar=", "expanduser(") if name in path.read_text()]
        assert not found or module in ("saferule", "saferule.environment"), f"{module}: {found}"


def test_nothing_imports_the_benchmarks():
    for path in PACKAGE.rglob("*.py"):
        assert "benchmarks" not in path.read_text(), path
