"""Pictures of the method, drawn by its own functions on the embedded world (docs/concepts.md)."""
