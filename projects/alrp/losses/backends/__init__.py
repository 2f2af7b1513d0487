"""The work over all S entries of a ranking, in three implementations of one interface.

Start with ``interface``: the method and what a backend must offer. ``choice`` picks the backend for
a device: ``compiled`` (its loops are in ``kernels``) on the CPU with numba; ``fused`` (its kernels
are in ``fused_kernels`` and ``pair_kernels``, which ``launching`` launches) on a GPU with Triton;
``operators`` anywhere else. What RS Loss does among the positives is in ``sorting``, too.
"""
