"""The command line, `morphkv`: a file a command."""
