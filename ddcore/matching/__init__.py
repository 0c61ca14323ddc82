"""Trajectory matching: the exact adjoint of an unrolled SGD run, the outer losses, and the loop that optimises a synthetic set."""
