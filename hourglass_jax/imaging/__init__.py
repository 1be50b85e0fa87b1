"""Images: reading, preprocessing, windows, class labels, visualization of results."""
