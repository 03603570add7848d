"""The Triton backend: every operation of kernels.backend.OPS as a fused kernel, one operation a file.

Each is a registered torch operator with a fake implementation, called by an autograd.Function, so that torch.compile
and CUDA graphs work through it. Runs on NVIDIA GPUs of compute capability 8.0 or more, and anywhere, slowly, under
TRITON_INTERPRET=1.
"""

from triton import knobs

if knobs.runtime.interpret:  # corrected before any kernel is defined
    from kernels import interpreter

    interpreter.mend()

from kernels.fused.attention import causal_attention, causal_attention_packed
from kernels.fused.cross_entropy import linear_cross_entropy
from kernels.fused.decode import decode_attention
from kernels.fused.layer_norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.fused.swiglu import swiglu, swiglu_unpacked

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "causal_attention",
    "causal_attention_packed",
    "decode_attention",
    "layer_norm",
    "linear_cross_entropy",
    "rms_norm",
    "swiglu",
    "swiglu_unpacked",
]
