"""Rewards behind Ray Serve: the application and its deployment, and the client that rollout actors score with."""
