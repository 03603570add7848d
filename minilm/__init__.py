"""minilm: from raw text to a small GPT that can be trusted.

The command line is `minilm --help`. From Python, loaded when first used:

    import minilm
    run = minilm.train(preset="quick", data="my.txt")    # or minilm.open_run("runs/quick-001")
    run.generate("Once")
    run.report()

and what a course's notebook calls:

    from minilm import assess_generation_quality, plot_training_report, scaling_analysis
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm.api import Run, open_run, train
    from minilm.errors import UserError
    from minilm.report.figures import plot_training_report
    from minilm.sampling.assess import assess_generation_quality
    from minilm.studies.notebook import scaling_analysis

__version__ = "0.1.0"

_WHERE = {
    "Run": "minilm.api",
    "UserError": "minilm.errors",
    "assess_generation_quality": "minilm.sampling.assess",
    "open_run": "minilm.api",
    "plot_training_report": "minilm.report.figures",
    "scaling_analysis": "minilm.studies.notebook",
    "train": "minilm.api",
}
__all__ = [
    "Run",
    "UserError",
    "assess_generation_quality",
    "open_run",
    "plot_training_report",
    "scaling_analysis",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'minilm' has no attribute {name!r}")
