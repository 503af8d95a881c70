"""`morphkv bench`."""
