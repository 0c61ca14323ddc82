"""Evaluation: pre-train encoders on sets of images, then measure them on labelled tasks, paired over seeds."""
