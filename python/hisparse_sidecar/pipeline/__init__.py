"""What the layers of a step do: index rows in, selection, KV rows in, attention."""
