"""What torch.autocast asks of an operation. In words that torch.compile can trace in every version from 2.10 on."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of matrix products on the device of `x` under autocast, or None where autocast is off."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast knows of no meta tensors
        return None
    return torch.get_autocast_dtype(device)


def autocasts_to_float32(x: Tensor) -> bool:
    """Whether autocast is on for a device where it runs PyTorch's own norms in float32: so on CUDA, not on a CPU."""
    return x.is_cuda and autocast_dtype(x) is not None
