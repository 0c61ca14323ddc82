"""What a job is: settings, rows, states, claims, outbox, artifact store and dataset catalogue; no HTTP, no torch."""
