"""The jobs a user submits: one short file a job (parse, build, run), and the runtime that they share."""
