"""What the experiments on cells share."""
