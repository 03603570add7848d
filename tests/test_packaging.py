"""The distribution: `kernels` and `minilm` and nothing else, every file of them, and what builds it again."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import minilm

ROOT = Path(__file__).parents[1]
NAME = f"minilm-{minilm.__version__}"
INFO = f"{NAME}.dist-info"


def build(hook, source, out):
    """By the build backend itself, as pip calls it: no environment is made, nothing is downloaded."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "error::UserWarning:setuptools"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel, wheel of the sdist), of a copy of the checkout, which holds more than what belongs into them."""
    folder = tmp_path_factory.mktemp("packaging")
    (folder / "checkout").mkdir()
    for path in ROOT.iterdir():
        if path.name in ("kernels", "minilm", "tests", "bench", "docs", "examples"):
            shutil.copytree(path, folder / "checkout" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, folder / "checkout")
    sdist = build("build_sdist", folder / "checkout", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (folder / "again").mkdir()
    wheel = build("build_wheel", folder / "checkout", folder)
    return sdist, wheel, build("build_wheel", folder / "unpacked" / NAME, folder / "again")


def sources():
    """Every file of the two packages in the checkout."""
    files = (path for package in ("kernels", "minilm") for path in (ROOT / package).rglob("*"))
    return {p.relative_to(ROOT).as_posix() for p in files if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_every_file_of_kernels_and_minilm_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel, zipfile.ZipFile(built[2]) as of_the_sdist:
        names = set(wheel.namelist())
        assert set(of_the_sdist.namelist()) == names
    assert {name for name in names if not name.startswith(f"{INFO}/")} == sources()
    described = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert {name.removeprefix(f"{INFO}/") for name in names - sources()} == described


def test_the_wheel_says_who_it_is(built):
    assert built[1].name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(built[1]) as wheel:
        read = {
            name: wheel.read(f"{INFO}/{name}").decode() for name in ("METADATA", "entry_points.txt", "top_level.txt")
        }
    metadata = email.message_from_string(read["METADATA"])
    assert metadata["Version"] == minilm.__version__ and metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11" and metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert read["entry_points.txt"].split() == ["[console_scripts]", "minilm", "=", "minilm.cli:main"]
    assert read["top_level.txt"].split() == ["kernels", "minilm"]


def test_the_sdist_holds_what_builds_the_wheel_and_the_license(built):
    with tarfile.open(built[0]) as archive:
        names = {m.name.removeprefix(f"{NAME}/") for m in archive.getmembers() if m.isfile()}
    names = {name for name in names if not name.startswith("minilm.egg-info/")}
    build_files = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "setup.cfg"}
    assert names == sources() | build_files | {"CHANGELOG.md", "CITATION.cff"}


def test_the_version_is_one_everywhere_and_below_what_transformers_takes_for_its_own_kernels():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == minilm.__version__
    heading = re.search(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert heading[1] == minilm.__version__
    assert heading[2] == re.search(r'^date-released: "(.+)"$', citation, re.M)[1]
    assert Version(minilm.__version__) < Version("0.9.0")
    assert "__version__" not in (ROOT / "kernels/__init__.py").read_text(encoding="utf-8")
