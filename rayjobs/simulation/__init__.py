"""A run in simulated time: how many actors, replicas and learners it takes, and what saturates first (no Ray here)."""
