"""What several tests use: twins of the native cache, servers, worlds with faults."""
