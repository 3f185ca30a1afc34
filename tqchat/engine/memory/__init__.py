"""Memory of weights and caches: predictions, budgets, and the scheme that fits."""
