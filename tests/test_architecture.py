"""The rooms and floors of CONTRIBUTING.md: who may import whom, read from the sources."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "peft_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
DRAWING = (PACKAGE.parent / "CONTRIBUTING.md").read_text()

# a unit is a folder or a file of the package; it imports from lower floors
FLOORS = {int(n): units.split() for n, units in re.findall(r"(?m)^floor (\d)   (.+)$", DRAWING)}
UNITS = {unit: floor for floor, units in FLOORS.items() for unit in units}

SAME_FLOOR = {  # and of its own floor from these
    "__main__": {"cli"},  # builds the parser that the command needs
    # products with weights that are stored in fewer bytes; the files of a model's folder
    "adapters": {"base_model", "kernels"},
    "base_model": {"kernels"},  # the dtype that suits the processor
    "commands": {"cli"},  # submit checks the options of fit
    "data": {"base_model"},  # a tokenizer by its name, read as a base's is
    "experiments": {"module", "training"},  # what they plan and evaluate
    "export": {"inference"},  # the tokens that end an answer
    "files": {"messages"},  # the types of errors
    "hyperparameters": {"messages"},  # what a secret is
    "hub": {"adapters", "base_model"},  # what it fetches and uploads
    "linear_cross_entropy": {"kernels"},
    "loss": {"forward_check", "hidden_cache", "loss_checks", "router_loss"},  # its parts
    "module": {"training"},  # its optimizer, checkpoints and callbacks
    "process": {"messages"},  # the types of errors
}

LIBRARIES = {  # beyond these a new dependency needs a reason, and a line here
    0: set(),
    1: {"torch", "transformers", "safetensors", "numpy", "tokenizers"},
    2: {"torch", "transformers", "safetensors", "numpy"},
    3: {"torch", "transformers", "safetensors", "numpy", "lightning", "torchmetrics"},
    4: {"torch", "transformers", "lightning", "jsonargparse", "yaml"},
}
ALSO = {
    "cli/command.py": {"docstring_parser"},
    "cli/model_card.py": {"huggingface_hub"},
    "data/files/arrow_files.py": {"pyarrow"},
    "data/files/compressed.py": {"pyarrow"},
    "data/files/hub_datasets.py": {"datasets", "huggingface_hub"},
    "data/cache.py": {"filelock"},
    "hidden_cache/store.py": {"filelock"},
    "data/tokens/templates.py": {"jinja2"},
    "data/datamodule.py": {"lightning"},
    "data/lightning_progress.py": {"lightning"},
    "data/loaders.py": {"lightning"},
    "data/resume.py": {"lightning"},
    "base_model/gguf_reading.py": {"gguf"},
    "base_model/load_errors.py": {"huggingface_hub"},
    "base_model/resolve.py": {"huggingface_hub"},
    "forward_check/check.py": {"lightning"},
    "hidden_cache/cache.py": {"lightning"},
    "hub.py": {"huggingface_hub"},
    "process/network.py": {"huggingface_hub"},
    "hyperparameters.py": {"lightning"},
    "metrics/bleu_chrf.py": {"sacrebleu"},
    "metrics/rouge.py": {"torchmetrics"},
    "training/cluster/submission.py": {"yaml"},
    "training/load_from_checkpoint.py": {"yaml"},
    "training/logger_checkpoints.py": {"wandb"},
    "training/loggers.py": {"mlflow"},
    "training/trackio_logger.py": {"trackio"},
    "experiments/sweep/points.py": {"yaml"},
    "experiments/sweep/state.py": {"yaml"},
    "experiments/sweep/values.py": {"yaml"},
    "export/gguf.py": {"gguf"},
    "export/gguf_architectures.py": {"gguf"},
    "export/gguf_families.py": {"gguf"},
    "export/gguf_layout.py": {"gguf"},
    "export/gguf_sentencepiece.py": {"gguf"},
    "export/gguf_tokenizer.py": {"gguf"},
    "export/gguf_types.py": {"gguf"},
    "export/llama_cpp.py": {"gguf", "llama_cpp"},
    "export/loaded_serving.py": {"peft"},
    "reports/run_record.py": {"yaml"},
    "reports/chart.py": {"matplotlib"},
}
BEFORE_THE_COMMAND_IS_KNOWN = [
    "__init__.py",
    "__main__.py",
    "cli/__init__.py",
    "cli/help.py",
    "cli/config_index.py",
    "messages.py",
    "process/__init__.py",
    "process/progress.py",
    "process/progress_format.py",
    "process/progress_line.py",
    "process/resources.py",
    "process/signals.py",
    "process/slurm.py",
]
ONE_PLACE = {  # what is done in one way, and where
    "get_close_matches": "messages.py",
    "file_digest": "files/checksums.py",
    "sha256(json": "files/checksums.py",
    "os.replace": "files/atomic.py",
    ".rename(": "files/atomic.py",
}
# only if their loggers, metrics or types of files are named
EXTRAS = {"wandb", "mlflow", "trackio", "sacrebleu", "llama_cpp", "peft"}
RAISES_BUGS = {"kernels/native/attention.py"}  # and nothing that a user can cause
HOMELESS = {"utils", "util", "common", "constants", "helpers", "misc", "types", "exceptions"}


def unit_of(name: str) -> str:
    """Return the unit of a module: its folder or its file."""
    return name.split(".")[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Return the full names of the modules that are imported anywhere in ``tree``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
            if node.module == "peft_lightning":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", [f for f in FILES if f.name != "__init__.py"], ids=relative)
def test_a_file_imports_only_from_below(file):
    own = unit_of(relative(file).replace("/", "."))
    names = {n.partition("peft_lightning.")[2] for n in imports(ast.parse(file.read_text()))}
    others = {unit_of(n) for n in names if n and n != "__version__"} - {own}
    below = {unit for unit, floor in UNITS.items() if floor < UNITS[own]}
    assert others <= below | SAME_FLOOR.get(own, set())
    assert own != "module" or "data" not in others  # it knows batches, not where they come from


def test_modules_of_one_floor_do_not_import_each_other_in_a_circle():
    edges: dict[str, set[str]] = {}
    for file in FILES:
        name = relative(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        tree = ast.parse(file.read_text())
        top = ast.Module([n for n in tree.body if not isinstance(n, ast.If)], [])
        found = {n.removeprefix("peft_lightning.") for n in imports(top) if "peft_lightning." in n}
        edges[name] = found - {name}
    while leaves := [name for name, found in edges.items() if not found & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges, f"a circle among {sorted(edges)}"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_file_uses_the_libraries_of_its_floor(file):
    floor = UNITS.get(unit_of(relative(file).replace("/", ".")), 4)
    roots = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    foreign = roots - sys.stdlib_module_names - {"peft_lightning"}
    assert foreign <= LIBRARIES[floor] | ALSO.get(relative(file), set())


@pytest.mark.parametrize("name", BEFORE_THE_COMMAND_IS_KNOWN)
def test_nothing_heavy_is_imported_before_the_command_is_known(name):
    body = [n for n in ast.parse((PACKAGE / name).read_text()).body if not isinstance(n, ast.If)]
    at_top = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {name.split(".")[0] for name in imports(ast.Module(at_top, []))}
    assert roots <= sys.stdlib_module_names | {"yaml", "peft_lightning"}


def test_a_forward_is_replaced_by_kernels_only():
    for file in FILES:
        targets = [
            target
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Assign)
            for target in node.targets
        ]
        replaces = any(isinstance(t, ast.Attribute) and t.attr == "forward" for t in targets)
        assert not replaces or relative(file).startswith("kernels/"), file


def test_the_module_of_a_user_is_a_short_file_that_calls_by_name():
    text = (PACKAGE / "module.py").read_text()
    assert len(text.splitlines()) <= 200
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.ImportFrom)]
    ours = [n for n in nodes if n.module and n.module.startswith("peft_lightning")]
    files = [alias for n in ours for alias in n.names if n.module == "peft_lightning.training"]
    assert len(files) + sum(n.module != "peft_lightning.training" for n in ours) <= 12


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_file_says_its_subject_and_has_a_home(file):
    assert not HOMELESS & set(relative(file).removesuffix(".py").split("/"))
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc
    assert doc.split("\n")[0].endswith((".", ":"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("base_model.model.", "adapters/state_dict.py"),
        ("GradientCheckpointingLayer", "kernels/decoder_layers.py"),
    ],
)
def test_a_name_of_hf_that_everybody_needs_stands_in_one_file(text, place):
    assert [relative(file) for file in FILES if text in file.read_text()] == [place]


def test_an_error_of_ours_has_the_type_that_tells_a_users_from_a_bug():
    plain = {"ValueError", "KeyError", "TypeError", "RuntimeError", "Exception"}
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            raised = node.exc if isinstance(node, ast.Raise) else None
            name = raised.func if isinstance(raised, ast.Call) else raised
            if isinstance(name, ast.Name) and name.id in plain:
                found.add(relative(file))
    assert found <= RAISES_BUGS


def test_every_dependency_is_used_and_every_library_declared():
    import tomllib

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {"jinja2": "Jinja2", "yaml": "PyYAML"}
    declared = {d.split("[")[0].split(">")[0].split("=")[0] for d in project["dependencies"]}
    used = set.union(*LIBRARIES.values(), *ALSO.values()) - EXTRAS
    # imported by the libraries themselves: transformers' loading, Lightning's default logger
    assert declared - {"accelerate", "tensorboard"} == {names.get(name, name) for name in used}
