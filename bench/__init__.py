"""What things cost: `pytest bench/ --benchmark-only` anywhere, `python -m bench.gpu` for a whole suite on a chip."""
