"""How the threads of PyTorch wait for each other on a CPU. To be called before PyTorch is imported."""

import os

# How often a thread of GNU OpenMP, which PyTorch for Linux comes with, looks whether there is work before it lets
# others have its core: by default 300,000 times, some ten milliseconds. Where another program wants the core, every
# operation of a small model then waits for a thread that has none. A step of shakespeare-char-cpu on two cores, ms:
#
#   looks       300,000   50,000   16,000   10,000   8,000   1,000     0
#   quiet            27        -       28        -      29      38    43
#   busy    1245, 1772  472, 699       -  201, 293       - 276, 283  185, 194
LOOKS = "10000"
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_politely() -> None:
    """Have threads give their cores up sooner, where the person has not said how they are to wait."""
    if not any(name in os.environ for name in SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = LOOKS
