"""Gluon bodies of the ops that score e4m3 keys; elsewhere the Triton bodies run."""
