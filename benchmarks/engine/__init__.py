"""SGLang's engine with its own attention backends and ours: what it answers, and how fast."""
