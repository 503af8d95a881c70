"""Commands that measure what a cache still knows."""
