"""The comparison's parts: what is run, where it is kept, how it is judged."""
