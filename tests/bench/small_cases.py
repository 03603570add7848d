"""A small case of every operation, for a CPU, that the tests of the benchmarks measure."""

import pytest
import torch

from bench import cases

CPU = torch.device("cpu")
SMALL = {
    "attention": cases.Attention("float32", 2, 3, 16, 8),
    "attention_apart": cases.AttentionApart("float32", 2, 3, 16, 8),
    "layer_norm": cases.LayerNorm("float32", 12, 32),
    "add_layer_norm": cases.AddLayerNorm("float32", 12, 32),
    "add_rms_norm": cases.AddRMSNorm("float32", 12, 32),
    "rms_norm": cases.RMSNorm("float32", 12, 32),
    "swiglu": cases.SwiGLU("float32", 12, 24),
    "cross_entropy": cases.CrossEntropy("float32", 12, 16, 40),
    "decode": cases.Decode("float32", 2, 3, 16, 8),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
