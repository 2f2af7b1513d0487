"""What processes tell each other to rank their batches together.

Only numbers of the positives are exchanged: their logits, their localisation errors, and the sums
over each process's negatives. The negatives stay where they are.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_STOPPED = -1


class SharedPositives:
    """The positives of all processes that are ranked together, in the order of their ranks.

    Args:
        num_own: number of positives of this process.
        device: that the processes talk from.
        group: the processes, which all do the same; None for this one alone.

    Attributes:
        own: where the positives of this process stand among them.
        num_processes: that gradients are multiplied by, because ``DistributedDataParallel``
            averages them, while here the contributions of the processes add up.

    Raises:
        FloatingPointError: if another process called :meth:`stop` instead.
    """

    def __init__(self, num_own: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._sizes = [num_own] if group is None else _exchange(num_own, device, group)
        if _STOPPED in self._sizes:
            raise FloatingPointError(
                f"process {self._sizes.index(_STOPPED)} of the group stopped for its inputs, as "
                "with NaN or Inf among them; its own message says what is wrong."
            )
        rank = 0 if group is None else dist.get_rank(group)
        first = sum(self._sizes[:rank])
        self.own = slice(first, first + num_own)
        self.num_processes = len(self._sizes)

    @staticmethod
    def stop(device: torch.device, group: dist.ProcessGroup | None) -> None:
        """Let the other processes raise as well, which would wait for this one for ever."""
        if group is not None:
            _exchange(_STOPPED, device, group)

    def __len__(self) -> int:
        return sum(self._sizes)

    def gather(self, own_values: Tensor) -> Tensor:
        """Values of all positives, from those of this process's; without gradient."""
        own_values = own_values.detach()
        if self._group is None:
            return own_values
        # All send equally much, as every backend can.
        padded = own_values.new_zeros(max(self._sizes))
        padded[: len(own_values)] = own_values
        gathered = [torch.empty_like(padded) for _ in self._sizes]
        dist.all_gather(gathered, padded, group=self._group)
        return torch.cat([values[:size] for values, size in zip(gathered, self._sizes)])

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of what each of them found for all positives."""
        if self._group is not None:
            values = values.clone()
            dist.all_reduce(values, group=self._group)
        return values


def _exchange(number: int, device: torch.device, group: dist.ProcessGroup) -> list[int]:
    """A number of every process, by rank; read from the device at once."""
    own = torch.tensor([number], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    return torch.cat(gathered).tolist()
