"""Data: archives and built-in sets of images, one uint8 tensor on the device, augmentation in batches."""
