"""Networks: the student whose trajectory is matched, its flat-parameter view, and teachers' backbones."""
