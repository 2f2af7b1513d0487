"""Communication between processes that rank their batches as one.

Only O(P) numbers are exchanged: the logits of the positives, one value for each (a localisation
error, an IoU), and sums over each process's negatives. The negatives stay where they are.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .inputs import NonFiniteError

_STOPPED = -1


class SharedPositives:
    """The positives of all processes of a group, process by process.

    Creating it and all methods but ``len`` are collective calls: every process must make them.

    Args:
        num_own: number of positives of this process.
        device: of the tensors that are exchanged.
        group: the processes; None for this one alone, without communication.

    Attributes:
        num_before: number of positives of the processes before this one.
        num_processes: size of the group. Gradients are multiplied by it, because
            ``DistributedDataParallel`` averages them where they should be added up.

    Raises:
        FloatingPointError: if another process called :meth:`stop` instead.
    """

    def __init__(self, num_own: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._sizes = [num_own] if group is None else _exchange(num_own, device, group)
        if _STOPPED in self._sizes:
            raise NonFiniteError(
                f"process {self._sizes.index(_STOPPED)} of the group stopped for its inputs, as "
                "with NaN or Inf among them; its own message says what is wrong."
            )
        rank = 0 if group is None else dist.get_rank(group)
        self.num_before = sum(self._sizes[:rank])
        self._num_own = num_own
        self.num_processes = len(self._sizes)

    @staticmethod
    def stop(device: torch.device, group: dist.ProcessGroup | None) -> None:
        """Make the other processes raise too, instead of waiting for this one for ever."""
        if group is not None:
            _exchange(_STOPPED, device, group)

    def __len__(self) -> int:
        return sum(self._sizes)

    def own_of(self, values: Tensor) -> Tensor:
        """(P_own,) values of this process's positives, from (P,) of all."""
        if self._group is None:
            return values
        return values.narrow(0, self.num_before, self._num_own)

    def gather(self, own_values: Tensor) -> Tensor:
        """(P,) values of all positives, from this process's (P_own,); without gradient."""
        own_values = own_values.detach()
        if self._group is None:
            return own_values
        # Padded to one length: not every backend can gather tensors of different sizes.
        padded = own_values.new_zeros(max(self._sizes))
        padded[: len(own_values)] = own_values
        gathered = [torch.empty_like(padded) for _ in self._sizes]
        dist.all_gather(gathered, padded, group=self._group)
        return torch.cat([values[:size] for values, size in zip(gathered, self._sizes)])

    def scaled_up(self, values: Tensor) -> Tensor:
        """Values of a gradient, multiplied by :attr:`num_processes`."""
        return values if self.num_processes == 1 else values * self.num_processes

    def sum(self, values: Tensor) -> Tensor:
        """(P,) sum over the processes, of (P,) that each found among its own negatives."""
        if self._group is not None:
            values = values.clone()
            dist.all_reduce(values, group=self._group)
        return values


def _exchange(number: int, device: torch.device, group: dist.ProcessGroup) -> list[int]:
    """One number from every process, in the order of their ranks."""
    own = torch.tensor([number], device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    return torch.cat(gathered).tolist()
