"""Tensor ops of hierarchical sparse attention, each with its reference twin in plain PyTorch.

On CUDA tensors the public functions run the Triton code of `gpu/`. It launches on torch's current
device, which must be the tensors' own, and moves 16 bytes at a time: tensors of bytes start at a
multiple of 16, as all fresh ones do.
"""
