"""How the work over all entries of a ranking is done, by device.

``interface`` says what a backend has to do, ``choice`` which one does it. ``compiled`` (with the
loops in ``kernels``) is for the CPU, ``operators`` for any device.
"""
