"""The observatory: how parameters move, and pictures of it."""
