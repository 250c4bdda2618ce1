"""What ranks cost that share a host pool."""
