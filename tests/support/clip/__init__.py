"""Projectors of clip, tiny and random, as its loader wants them, and by their families."""
