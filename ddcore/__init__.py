"""ddcore: the distillation engine. Specs and files in, files out; no service, no database, no environment variables."""
