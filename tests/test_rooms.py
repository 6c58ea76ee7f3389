"""The rooms of src/cepo: what each may import, and that the core needs no TRL."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "cepo"
# From the bottom up. A room imports itself and those below it.
FLOORS = (
    "acceleration",
    "credit",
    "references",
    "methods",
    "scoring",
    "distillation",
    "data",
    "tasks",
    "inspection",
    "trainer",
    "fast",
    "planning",
    "compare",
    "commands",
    "cli",
)
# A room that does not need one below it says so in its docstring; these are the rest of what it may not import.
APART = {("distillation", "methods"), ("data", "distillation"), ("tasks", "distillation"), ("tasks", "scoring")}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path):
    """The modules of cepo that a file imports, each as its path below the package; those for types alone too."""
    package = ("cepo", *path.relative_to(SOURCE).parent.parts)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = (*base, *(node.module.split(".") if node.module else ()))
            if len(module) == 1:  # `from .. import tasks`
                yield from ((alias.name,) for alias in node.names if not alias.name.startswith("__"))
            else:
                yield module[1:]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cepo":
            yield tuple(node.module.split("."))[1:]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                if parts[0] == "cepo" and len(parts) > 1:
                    yield parts[1:]


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_there_are_few_rooms_each_with_one_sentence_or_two():
    rooms = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))
    assert len(rooms) <= 13
    assert {room.name for room in rooms} | {"acceleration", "credit", "cli"} == set(FLOORS)
    for room in rooms:
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert docstring, room
        assert "\n" not in docstring, f"{room.name}: one line says what lives there and what it may import"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_arrow_runs_back_up(path):
    here = FLOORS.index(room_of(path))
    for module in imports_of(path):
        there = module[0]
        assert there in FLOORS, f"{path.name} imports {module}"
        assert FLOORS.index(there) <= here, f"{path} is below {there}, which it imports"
        assert (room_of(path), there) not in APART


def test_no_circle_of_files():
    graph = {}
    for path in FILES:
        name = path.relative_to(SOURCE).with_suffix("").parts
        graph[name[:-1] if name[-1] == "__init__" else name] = set(imports_of(path))
    done, under_way = set(), []

    def visit(module):
        if module in done or module not in graph:
            return
        assert module not in under_way, " -> ".join(".".join(m) for m in [*under_way, module])
        under_way.append(module)
        for other in graph[module]:
            if other != module:
                visit(other)
        under_way.pop()
        done.add(module)

    for module in graph:
        visit(module)
    assert len(done) == len(graph)


def test_the_package_imports_no_experiment():
    outside = {path.name for path in SOURCE.parents[1].iterdir() if path.is_dir()} - {"src"}
    assert "experiments" in outside
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not outside & {name.split(".")[0] for name in names}, path


def test_only_the_trainers_room_touches_trls_internals():
    """Others may take what TRL makes public to them: rewards, loading of models, the fused divergence."""
    users = {path for path in FILES if "from trl" in path.read_text() or "import trl" in path.read_text()}
    allowed = {"trainer", "fast", "data", "distillation", "commands"}
    assert {room_of(path) for path in users} <= allowed
    inside = ("trl.trainer.grpo_trainer", "trl.models.utils")
    assert {room_of(path) for path in users if any(name in path.read_text() for name in inside)} <= {"trainer", "fast"}


CORE = (
    "cepo.credit",
    "cepo.references.negatives",
    "cepo.references.hint_content",
    "cepo.methods",
    "cepo.scoring.pipeline",
)


@pytest.mark.parametrize("module", CORE)
def test_the_core_needs_neither_trl_nor_datasets(module):
    code = f"""
import sys
for name in ("trl", "datasets", "pandas", "matplotlib", "accelerate.test_utils"):
    sys.modules[name] = None
import {module}
from cepo import credit, METHODS, method_options, choose_references, final_answer, same_answer
assert method_options("cepo").evidence_clip == 0.5
assert "cepo" in METHODS
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_public_surface():
    """docs/api.md lists it; what is listed is there."""
    import cepo

    listed = (SOURCE.parents[1] / "docs" / "api.md").read_text()
    for name in cepo.__all__:
        assert getattr(cepo, name) is not None
        assert f"`{name}`" in listed, f"docs/api.md does not list {name}"
    expected = {
        *("credit", "final_answer", "reference_answer", "same_answer", "choose_references"),
        *("CEPOConfig", "CEPOTrainer", "METHODS", "load_figures", "policy_path"),
    }
    assert expected <= set(cepo.__all__)
    for function in ("evidence", "evidence_weights", "token_advantages", "evidence_coefficient", "mean_probability"):
        assert callable(getattr(cepo.credit, function))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cepo.nonsense
