"""Who asks, what that person or service may do, and how often: tokens, keys, rights, limits."""
