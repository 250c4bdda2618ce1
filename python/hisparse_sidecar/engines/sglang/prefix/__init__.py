"""The prefix cache of offload: `--radix-cache-backend hisparse`."""
