"""Compiles every Triton kernel for GPUs that are not there, and checks what came out.

`python -m tools.crosscompile` calls the real launchers on CPU tensors of production sizes; a stub
driver names the target, and each kernel that a launcher launches is compiled instead of run.
"""
