"""Experts: students trained on the real images to regress the teacher's targets, and the trajectories they leave."""
