"""The commands below `sicompiler rehash`."""
