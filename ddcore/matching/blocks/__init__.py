"""Instance norm, ReLU and average pooling as one operation with three derivatives, in several implementations of one interface."""
