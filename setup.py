"""Packaging of minilm: two top-level packages, `kernels` (the operations) and `minilm` (the laboratory)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "minilm/__init__.py").read_text(encoding="utf-8"), re.M).group(1)

setup(
    name="minilm",
    version=VERSION,
    description="A small-GPT laboratory: train, sample, ablate, fit and report, on fused Triton kernels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["kernels", "kernels.*", "minilm", "minilm.*"]),
    package_data={"minilm": ["py.typed", "report/templates/*"], "kernels": ["py.typed", "fused/tuned/*.json"]},
    install_requires=[
        "torch>=2.10",  # CVE-2025-32434 and CVE-2026-24747 in torch.load are fixed there
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26",
        "scipy>=1.11",  # the distributions and optimizers behind intervals and fits
        "matplotlib>=3.8",
        "click>=8.2",
        "rich>=13.7",
        "tokenizers>=0.20",
        "safetensors>=0.5",  # weights of other houses, in and out; half a megabyte that depends on nothing
        "jinja2>=3.1",
        "filelock>=3.13",  # a run folder has one writer; torch brings it too
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.14"],  # minilm train --log tensorboard
        "wandb": ["wandb>=0.16"],
        "test": [
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-cov>=5",
            "pytest-xdist>=3.6",  # make test: a process a core
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.15",
            "tensorboard>=2.14",  # its event files are read back
            "transformers>=4.50",  # GPT-2 is checked against its implementation
        ],
    },
    entry_points={"console_scripts": ["minilm = minilm.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
