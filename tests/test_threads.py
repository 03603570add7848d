"""Threads give their cores up soon, unless the person has said how they are to wait."""

import subprocess
import sys

import pytest

from minilm import threads

SHOW = (
    "import os, sys; from minilm import cli; cli.cli.main = lambda **_: print(os.environ.get('GOMP_SPINCOUNT'), "
    "'torch' in sys.modules); cli.main()"
)


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_the_command_sets_it_before_torch_is_imported_where_nobody_has(given, monkeypatch):
    for name in threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    expected = threads.LOOKS if not given else given.get("GOMP_SPINCOUNT")
    assert done.stdout.split() == [str(expected), "False"]
