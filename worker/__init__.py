"""The Celery worker: a supervisor that never imports torch, and the runner that owns the accelerator."""
