"""What `rayjobs/bench.py` is made of: the measured processes, the yardstick, the report."""
