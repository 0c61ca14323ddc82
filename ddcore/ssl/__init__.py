"""Self-supervised teachers: training, measuring, loading, and the targets they give."""
