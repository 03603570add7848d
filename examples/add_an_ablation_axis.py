"""A question of your own as an axis of an ablation: at one width, are many narrow heads better than few wide ones?

python add_an_ablation_axis.py
python add_an_ablation_axis.py --steps 500 --seeds 5 --out studies/heads
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from minilm.config import RunConfig
from minilm.errors import UserError
from minilm.studies import design
from minilm.studies.study import Plan, ablate


def heads(base: RunConfig) -> list[tuple[str, design.Override]]:
    """The arms of the axis: half and twice as many heads as the baseline has, of a width that divides evenly.

    An axis is a function from the baseline to (label, override) pairs; an override is {section: {key: value}}, and what
    it does not name stays as it is. The baseline itself is no arm, and the number of parameters does not change.
    """
    counts = [n for n in (base.model.n_heads // 2, base.model.n_heads * 2) if n and base.model.d_model % n == 0]
    return [
        (f"{n} head{'s' * (n > 1)} of {base.model.d_model // n}", {"model": {"n_heads": n, "n_kv_heads": n}})
        for n in counts
        if base.model.position != "rope" or base.model.d_model // n % 2 == 0  # rotation turns pairs
    ]


design.AXES["heads"] = heads  # from here on it is an axis like depth or width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="of each arm; three at least to judge anything")
    parser.add_argument("--out", type=Path, default=Path("studies/heads"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of every arm")
    options = parser.parse_args()

    plan = Plan(axes=("heads",), steps=options.steps, seeds=options.seeds, assignments=tuple(options.set))
    finished = ablate(options.out, plan, resume=True, jobs=1, shard=(1, 1), merge=(), console=Console())
    sys.exit(0 if finished else 130)  # as a shell reports Ctrl-C; the same command goes on


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
