"""The servicers: each method decodes, calls and encodes, and holds no logic."""
