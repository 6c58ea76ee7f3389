"""The packages of src/cepo: their order, no circular imports, and a core without TRL."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "cepo"
# Bottom up: a package imports itself and earlier ones.
PACKAGES = (
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
# (importer, imported) pairs that the order allows and that must not occur.
FORBIDDEN = {("distillation", "methods"), ("data", "distillation"), ("tasks", "distillation"), ("tasks", "scoring")}


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path):
    """The modules of cepo that a file imports, as paths below the package; TYPE_CHECKING imports included."""
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


def test_every_package_has_a_place_and_a_docstring_of_one_line():
    packages = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert {package.name for package in packages} | modules == set(PACKAGES)
    for package in packages:
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
        assert docstring, package
        assert "\n" not in docstring, package


def test_files_import_only_packages_below():
    for path in FILES:
        importer = package_of(path)
        for imported, *_ in imports_of(path):
            assert imported in PACKAGES, f"{path} imports {imported}"
            assert PACKAGES.index(imported) <= PACKAGES.index(importer), f"{path} imports {imported}, which is above it"
            assert (importer, imported) not in FORBIDDEN, f"{path} imports {imported}"


def test_no_circular_imports():
    graph = {}
    for path in FILES:
        name = path.relative_to(SOURCE).with_suffix("").parts
        graph[name[:-1] if name[-1] == "__init__" else name] = set(imports_of(path))
    done, active = set(), []

    def visit(module):
        if module in done or module not in graph:
            return
        assert module not in active, " -> ".join(".".join(m) for m in [*active, module])
        active.append(module)
        for other in graph[module]:
            if other != module:
                visit(other)
        active.pop()
        done.add(module)

    for module in graph:
        visit(module)
    assert len(done) == len(graph)


def test_the_package_imports_no_other_folder_of_the_repository():
    outside = {path.name for path in SOURCE.parents[1].iterdir() if path.is_dir()} - {"src"}
    assert "experiments" in outside
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not outside & {name.split(".")[0] for name in names}, path


def test_only_trainer_and_fast_import_trls_internals():
    """Other packages use TRL's public functions: rewards, model loading, the fused divergence."""
    texts = {path: path.read_text() for path in FILES}
    users = {package_of(path) for path, text in texts.items() if "from trl" in text or "import trl" in text}
    assert users <= {"trainer", "fast", "data", "distillation", "commands"}
    internals = ("trl.trainer.grpo_trainer", "trl.models.utils")
    users = {package_of(path) for path, text in texts.items() if any(name in text for name in internals)}
    assert users <= {"trainer", "fast"}


CORE = (
    "cepo.credit",
    "cepo.references.negatives",
    "cepo.references.hint_content",
    "cepo.methods",
    "cepo.scoring.pipeline",
)


def test_core_imports_without_trl_and_datasets():
    code = f"""
import sys
for name in ("trl", "datasets", "pandas", "matplotlib", "accelerate.test_utils"):
    sys.modules[name] = None
import {", ".join(CORE)}
from cepo import credit, METHODS, method_options, choose_references, final_answer, same_answer
assert method_options("cepo").evidence_clip == 0.5
assert "cepo" in METHODS
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_public_names():
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
