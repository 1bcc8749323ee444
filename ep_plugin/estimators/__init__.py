"""How a loss becomes gradients: one file an estimator."""
