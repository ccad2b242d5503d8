"""What changes the model: the stages, the one training loop, the tasks, the networks."""
