"""How much memory a process has needed."""

import resource
import sys
import torch


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of PyTorch's allocator on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
