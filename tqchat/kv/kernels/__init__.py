"""Fused GPU kernels: attention over packed storage, and encoding.

The kernel bodies (``shaders/*.inc``) are shared by Metal and CUDA, behind a short header for each; CUDA
tensor cores have their own loop over packed tokens. On first use a kernel's result is compared with plain
operations on this device. If it differs or does not compile, plain operations are used, and
``device.kernels().refused`` gives the reason.
"""
