"""The work over all S entries of a ranking, in two implementations of one interface.

Start with ``interface``: the method and what a backend must offer. ``choice`` picks the backend for
a device: ``compiled`` (its loops are in ``kernels``) on the CPU, ``operators`` anywhere else.
"""
