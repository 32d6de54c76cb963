"""Kernels for a GPU, in Triton: what the files in C are for the CPU.

Every sum in a kernel runs over a list in a fixed order, so that it does not differ from call to call. Without Triton
(:func:`adlayer.compiled.for_gpu`) the work is done by PyTorch alone: slower, the same numbers to rounding.
"""
