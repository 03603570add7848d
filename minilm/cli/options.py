"""What several commands take."""

from pathlib import Path

import click

KERNELS = click.Choice(["auto", "reference", "torch", "triton"])
FOLDER = click.Path(path_type=Path)
