"""Speed and memory of decoding, measured as ratios within one run."""
