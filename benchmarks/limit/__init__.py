"""The limit: how fast this host can multiply and move bytes, and the least time that a graph can take on it."""
