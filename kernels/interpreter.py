"""Makes Triton's interpreter (TRITON_INTERPRET=1) round and multiply bfloat16 as a GPU does.

The interpreter holds bfloat16 as its 16 raw bits in NumPy's uint16. As shipped (Triton 3.6 and 3.7) tl.dot multiplies
those bits as integers, and a cast from float32 drops the low bits where the hardware rounds to the nearest even.
mend() replaces both. Other arithmetic on bfloat16 stays wrong there, so a kernel upcasts before it calculates.

Triton 3.6 also calls int() on arrays of one element and more than zero dimensions, which NumPy 2.4 refuses; loop
bounds are therefore unpacked here too.

Two things are done once that cost a quarter of an interpreted kernel's time: at every call of one device function by
another the interpreter looks through all of its language for what is to be replaced, which the launch has replaced
already; and for every result it builds its table of NumPy's types anew.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as _interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 bits, any shape, to the float32 of the same value."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Floats, any shape, to bfloat16 as uint16 bits: nearest, ties to even; NaN stays NaN, overflow is infinite."""
    bits = np.asarray(values, dtype=np.float32).copy().view(np.uint32)
    half = 0x7FFF + ((bits >> 16) & 1)  # just under half a unit of the last place kept, and half of it on odd values
    rounded = (bits.astype(np.uint64) + half) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _is_bfloat16(dtype: tl.dtype) -> bool:
    return dtype.scalar == tl.bfloat16


def _as_float32(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bfloat16(handle.dtype) else handle


@functools.cache
def _languages(fn: Callable) -> list[Any]:
    """The modules of Triton's language that a kernel sees."""
    return [value for value in fn.__globals__.values() if value is tl or value is tl.core]


def mend() -> None:
    """Install the corrections, once; calling it again changes nothing. To be called before the first launch."""
    if hasattr(InterpreterBuilder, "_bfloat16_mended"):
        return
    stock_dot, stock_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    stock_lang_tensor, stock_lang = _interpreter._patch_lang_tensor, _interpreter._patch_lang
    stock_numpy_type = _interpreter._get_np_dtype
    numpy_types: dict[str, np.dtype] = {}  # by the name of the Triton type, which is unique

    def create_dot(self, a, b, d, *rest):
        return stock_dot(self, _as_float32(a), _as_float32(b), d, *rest)

    def cast_impl(self, src, dst_type):
        src = _as_float32(src)
        if _is_bfloat16(dst_type):
            return TensorHandle(narrow(src.data), tl.bfloat16)
        return stock_cast(self, src, dst_type)

    def patch_lang_tensor(tensor, scope):
        stock_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def patch_lang(fn):
        if not any(tl.core.is_builtin(module.load) for module in _languages(fn)):
            return _interpreter._LangPatchScope()  # nothing to put back
        return stock_lang(fn)

    def numpy_type(dtype):
        scalar = dtype.scalar
        if scalar.name not in numpy_types:
            numpy_types[scalar.name] = stock_numpy_type(scalar)
        return numpy_types[scalar.name]

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    _interpreter._get_np_dtype = numpy_type
    _interpreter._patch_lang_tensor, _interpreter._patch_lang = patch_lang_tensor, patch_lang
    InterpreterBuilder._bfloat16_mended = True
