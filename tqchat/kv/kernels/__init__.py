"""Attention over packed storage and encoding into it, each in one or two kernels on a GPU.

The kernels' bodies (``*.inc``) are one text for Metal and CUDA, behind a thin header for each; on CUDA's
tensor cores the loop over packed tokens is another. On first use a kernel's answer is held against the plain
operations' on this device; where it disagrees or does not compile, these stay, and
``device.kernels().refused`` says why.
"""
