"""What lies in a pool of SGLang's or beside it, and the hooks of those who write there."""
