"""How the suite `eviction` is drawn."""
