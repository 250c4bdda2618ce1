"""The device and host memory of a sidecar, and what lies below: built, opened, measured."""
