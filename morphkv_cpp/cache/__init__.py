"""What a `Llama` and its cache are asked: decode, take back, save, recall."""
