"""Suite `ops`: every tensor op at the design's shapes, beside the peers that load."""
