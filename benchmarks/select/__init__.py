"""Suite `select`: whole selections to final indices, ours beside the peers' chain."""
