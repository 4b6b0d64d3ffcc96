"""Copying a run's folder to an address of object storage while it runs, and fetching it from there to go on."""
