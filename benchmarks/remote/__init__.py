"""The remote tier beside the client that it is built on."""
