"""Fine-tuning: data, what of it is learned, the training loop, its state and its report."""
