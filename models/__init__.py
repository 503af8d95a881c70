"""Where models come from: the demo model, and tiny GGUFs with random weights."""
