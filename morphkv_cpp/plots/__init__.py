"""Pictures of what `bench` measured; they need the extra `plot`."""
