"""Nothing here runs code that came as data: the syntax trees of all packages are walked for what could."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("kernels", "minilm", "bench") for path in (ROOT / package).rglob("*.py"))
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "pickletools",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "os.execl", "os.execv"}
# files that a person names so that they are run: nanoGPT's model by --nanogpt, the answers to the quiz
ALLOWED = {("bench/nanogpt.py", "exec_module"), ("minilm/quiz/runner.py", "exec_module")}


def findings(tree: ast.AST) -> set[str]:
    """What in a syntax tree could run data as code, named by what is called or imported."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {name for name in names if name.split(".")[0] in MODULES}
        elif isinstance(node, ast.Attribute) and node.attr == "exec_module":
            found.add("exec_module")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in CALLS | SHELLS:
                found.add(name)
            if options.get("shell", "False") != "False":
                found.add("shell=True")
            if name == "torch.load" and options.get("weights_only") != "True":
                found.add("torch.load")
            if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
                found.add("allow_pickle")
            if re.fullmatch(r"yaml\.(load|unsafe_load|full_load)", name) or name.endswith(
                ("all_gather_object", "broadcast_object_list")
            ):
                found.add(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_data_as_code(path):
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {(name, what) for what in findings(tree)} <= ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch, dill.source",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "spec.loader.exec_module(module)",
        "dist.broadcast_object_list(x)",
    ],
)
def test_the_walk_finds(source):
    assert findings(ast.parse(source))


def test_the_walk_sees_every_package():
    assert len(SOURCES) > 60 and {path.relative_to(ROOT).parts[0] for path in SOURCES} == {"kernels", "minilm", "bench"}


def test_a_torch_is_required_whose_safe_loading_is_mended():
    """CVE-2025-32434 is mended in 2.6, CVE-2026-24747 in 2.10."""
    required = re.search(r'"torch>=(\d+)\.(\d+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert required and tuple(map(int, required.groups())) >= (2, 10)
