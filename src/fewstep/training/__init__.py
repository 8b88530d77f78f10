"""Training, evaluation, run directories, checkpoints."""
