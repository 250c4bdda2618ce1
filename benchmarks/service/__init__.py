"""The server under load: what its clients wait while something is short, slow or about to end."""
