"""What `hisparse info` finds out about the machine."""
