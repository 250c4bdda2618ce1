"""The subcommands of `hisparse`, one a file."""
