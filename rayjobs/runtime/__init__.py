"""The only place that knows Ray actors and Ray Train: it wires the method's pieces into one distributed run."""
