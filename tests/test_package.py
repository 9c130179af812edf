"""The package: what an import costs, what is found where, and what is said when a framework is not there."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import vit
from vit import families
from vit.errors import install_line

ROOT = Path(vit.__file__).parent
FRAMEWORKS = {"pt": ("torch",), "tf": ("tensorflow", "keras"), "flax": ("jax", "flax")}
MODULES = [module for modules in FRAMEWORKS.values() for module in modules]
MODELS = {framework: f"{prefix}ViTModel" for framework, prefix in (("pt", ""), ("tf", "TF"), ("flax", "Flax"))}


def fresh(code: str, without: tuple[str, ...] = (), **environment: str) -> str:
    """What a new process prints that runs `code`; the modules `without` cannot be imported there."""
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", blocker + code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# === Importing ===


def test_importing_vit_takes_less_than_0_15_seconds_and_loads_no_framework():
    code = """
import time
begin = time.process_time()
import vit
print(time.process_time() - begin, *sys.modules)
"""
    runs = [fresh(code).split() for _ in range(5)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.15
    heavy = {*MODULES, "numpy", "PIL", "huggingface_hub", "safetensors", "transformers"}
    assert heavy.isdisjoint(runs[0][1:])


@pytest.mark.parametrize("name", ["ViTConfig", "ModelOutput", "CheckpointError", "ViTImageProcessor"])
def test_a_name_without_a_framework_loads_none(name):
    loaded = fresh(f"import vit; vit.{name}; print(*sys.modules)").split()
    assert set(MODULES).isdisjoint(loaded)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_loads_its_own_framework_alone(framework):
    others = tuple(module for other, modules in FRAMEWORKS.items() if other != framework for module in modules)
    assert fresh(f"import vit; print(vit.{MODELS[framework]}.__module__)", without=others) == f"vit.{framework}.vit"


def test_triton_is_loaded_before_tensorflow_where_it_is(tmp_path):
    (tmp_path / "triton.py").write_text(
        "import sys; print('triton', 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    (tmp_path / "keras.py").write_text("raise SystemExit")  # far enough
    assert fresh(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vit.tf") == "triton False False"


# === Names ===


@pytest.mark.parametrize("name", sorted(set(dir(vit)) - {"DEMO", "__version__"}))
def test_every_public_name_is_found(name):
    assert getattr(vit, name).__name__.removeprefix("vit.") == name
    assert getattr(vit, name) is getattr(vit, name)


@pytest.mark.parametrize("name", ["pt.quantize", "tf.TFViTModel", "flax.FlaxViTModel"])
def test_a_frameworks_room_is_found_after_importing_vit_alone(name):
    assert fresh(f"import vit; print(vit.{name}.__module__)").startswith(f"vit.{name[:2]}")


def test_what_conversion_does_is_found_in_vit_and_imported_when_used():
    code = "import sys, vit; print('conversion' in sys.modules, vit.convert.__module__, vit.verify, vit.inspect)"
    assert fresh(code).startswith("False conversion.engine ")


@pytest.mark.parametrize(
    "extra", ["pt", "tf", "flax", "plot", "convert", "table", "train", "onnx", "openvino", "litert", "serve", "all"]
)
def test_the_line_that_installs_an_extra_names_what_an_index_has(extra):
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (several,) = project["all"]
    extras = re.search(r"\[(.*)\]", several)[1].split(",") if extra == "all" else [extra]
    named = [requirement for name in extras for requirement in project[name]]
    command, verb, *given = shlex.split(install_line(extra))
    assert ([command, verb], sorted(given)) == (["pip", "install"], sorted(named))


def test_the_line_that_installs_an_extra_in_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_line.__wrapped__("pt") == "pip install '.[pt]'"


def test_no_message_names_a_package_that_no_index_has():
    pattern = re.compile(r"trivit\[")
    assert not [name for name, path in FILES.items() if pattern.search(path.read_text())]


def test_importing_everything_imports_no_framework():
    assert (
        fresh("from vit import *; print(ViTConfig.__name__)", without=[m for ms in FRAMEWORKS.values() for m in ms])
        == "ViTConfig"
    )


def test_dir_lists_the_public_names():
    assert set(vit.__all__) < set(dir(vit))
    assert {"ViTModel", "TFViTForImageClassification", "FlaxViTForMaskedImageModeling", "ViTConfig"} <= set(dir(vit))


def test_an_unknown_name_is_an_attribute_error_of_the_module():
    with pytest.raises(AttributeError, match="module 'vit' has no attribute 'ViTModle'"):
        _ = vit.ViTModle
    with pytest.raises(ImportError, match="cannot import name 'ViTModle'"):
        from vit import ViTModle  # noqa: F401


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert vit.__version__ == project["version"]


def test_every_class_of_a_framework_has_its_counterpart_in_the_others():
    names = [
        {name.removeprefix(prefix) for name in importlib.import_module(f"vit.{framework}").__all__ if "ViT" in name}
        for framework, prefix in (("pt", ""), ("tf", "TF"), ("flax", "Flax"))
    ]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("room", ["families", *FRAMEWORKS])
def test_a_familys_file_has_at_most_200_lines_and_what_families_share_350(room):
    names = {entry.partition(".")[0] for entry in families.CONFIGS.values()}
    shared = set() if room == "families" else {"base", "dino", "heads", "layers"}
    for name in names | shared:
        lines = (ROOT / room / f"{name}.py").read_text().count("\n")
        assert lines <= (350 if name in shared else 200), f"{room}/{name}.py has {lines} lines"


# === Arrows point down ===


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports anywhere in it, and those of this package as "vit.NAME"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if not node.level:
                names.add(module.partition(".")[0])
                continue
            package = path.relative_to(ROOT.parent).with_suffix("").parts[: -node.level]
            targets = [module] if module else [alias.name for alias in node.names]
            names |= {".".join([*package, target]).partition(".")[2].partition(".")[0] for target in targets}
    return names


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frameworks_folder_imports_no_other_framework(framework):
    others = {other for other in FRAMEWORKS if other != framework}
    modules = {module for other in others for module in FRAMEWORKS[other]}
    for path in (ROOT / framework).glob("*.py"):
        assert imported(path).isdisjoint(others | modules), path


def test_shared_files_import_no_framework():
    exceptions = {ROOT / name for name in ("__init__.py", "inference.py", "measure.py")}  # serve and time all
    shared = {path for folder in (".", "families", "checkpoint", "config") for path in (ROOT / folder).glob("*.py")}
    for path in shared - exceptions:
        assert imported(path).isdisjoint({*FRAMEWORKS, *MODULES}), path


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """The dotted modules that a file of vit/ or conversion/ imports where it runs, not for type checkers alone."""
    names, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.Lambda) and not inside_functions:
            continue
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT.parent).with_suffix("").parts[: -node.level or 0] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {name if name in FILES else module for name in (f"{module}.{each.name}" for each in node.names)}
        else:
            waiting += ast.iter_child_nodes(node)
    return names


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for folder in (ROOT, ROOT.parent / "conversion") for path in folder.rglob("*.py")}


def test_no_two_files_import_each_other():
    graph = {name: (imports(path) & FILES.keys()) - {name} for name, path in FILES.items()}
    assert "vit.config" in graph["vit.checkpoint.reading"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_the_three_rooms_and_the_fast_processor_import_a_framework_when_they_are_imported():
    rooms = tuple(f"vit.{framework}" for framework in FRAMEWORKS)
    for name, path in FILES.items():
        if not name.startswith(rooms) and name != "vit.image_processing.fast":
            loaded = imports(path, inside_functions=False)
            assert not [each for each in loaded if each.startswith((*rooms, *MODULES))], name


def test_what_is_shared_works_where_no_framework_is_installed(reference, tmp_path):
    code = f"""
from pathlib import Path
from vit import CheckpointError, ViTConfig, checkpoint, hub, inputs, outputs, posemb, weights
from vit.errors import installed_frameworks
opened = checkpoint.Checkpoint({str(reference / "hf_torch")!r})
tensors = {{name: (t.shape, t.dtype) for name, t in opened.tensors.items()}}
checkpoint.write({str(tmp_path)!r}, opened.config, tensors, opened.read)
assert len(checkpoint.Checkpoint({str(tmp_path)!r}).tensors) == 56
pickled = checkpoint.Checkpoint({str(reference / "hf_torch_bin")!r})
assert all((pickled.read(name) == opened.read(name)).all() for name in tensors)
"""
    assert not fresh(code, without=tuple(MODULES))


# === Missing frameworks ===


@pytest.mark.parametrize(
    ("framework", "missing"), [(f, module) for f, modules in FRAMEWORKS.items() for module in modules]
)
def test_a_missing_framework_is_named_with_the_line_that_installs_it(framework, missing):
    code = f"""
import vit
try:
    vit.{MODELS[framework]}
except vit.MissingFrameworkError as error:
    print(type(error).__mro__[1].__name__, error)
    print(error.__suppress_context__)
"""
    title = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}[framework]
    line = f"vit.{framework} needs {title}. Install it with: {install_line(framework)}"
    assert fresh(code, without=(missing,)).splitlines() == [f"ImportError {line}", "True"]


def test_the_installed_frameworks_are_found_without_importing_any():
    code = "from vit.errors import installed_frameworks as f; print(*f(), set(sys.modules) & set({modules!r}))"
    assert fresh(code.format(modules=MODULES)) == "pt tf flax set()"


def test_keras_on_another_backend_is_named_with_the_remedy():
    code = """
import json, vit
try:
    vit.TFViTModel
except vit.MissingFrameworkError as error:
    print(json.dumps(str(error)))
"""
    message = json.loads(fresh(code, KERAS_BACKEND="jax").splitlines()[-1])
    assert message == (
        "vit.tf needs Keras on TensorFlow, but Keras was started on 'jax'. Set KERAS_BACKEND=tensorflow (or unset it) "
        "before Python imports keras."
    )
