"""Training of SimMIM models: data, objectives, tasks, one training loop, and evaluation."""
