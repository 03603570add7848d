"""The eight questions of a transformer checkpoint: asked, answered from memory, verified by running this very code."""
