"""A corpus of broken inputs."""
