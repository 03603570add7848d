"""Shared by all tests: no downloads, no display, few threads, no cache outside the temporary folder."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
