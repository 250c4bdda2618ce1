"""What the suite `eviction` records and draws."""
