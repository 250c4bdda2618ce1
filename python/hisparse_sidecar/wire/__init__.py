"""What server and client must agree on beyond the proto: errors, dtypes, names, encodings."""
