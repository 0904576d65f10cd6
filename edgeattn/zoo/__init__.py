"""Ready models with trained weights, one file each; `scripts/train_zoo` makes the weights again."""
