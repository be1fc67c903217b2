"""Where the checkpoint is kept."""
