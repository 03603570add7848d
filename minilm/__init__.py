"""minilm: from raw text to a small GPT that can be trusted.

The command line is `minilm --help`. From Python, what a course's notebook calls is here, loaded when first used:

    from minilm import assess_generation_quality, plot_training_report, scaling_analysis
"""

from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "assess_generation_quality": "minilm.sampling.assess",
    "plot_training_report": "minilm.report.figures",
    "scaling_analysis": "minilm.studies.notebook",
}
__all__ = ["assess_generation_quality", "plot_training_report", "scaling_analysis"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'minilm' has no attribute {name!r}")
