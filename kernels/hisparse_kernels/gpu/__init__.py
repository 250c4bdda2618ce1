"""Triton code of the ops: one op a file, `X_triton` with the signature and meaning of `X_ref`."""
