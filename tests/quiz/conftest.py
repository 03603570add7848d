"""A data folder of its own for every test: nobody's progress is touched."""

import pytest


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("MINILM_DATA", str(folder))
    return folder
