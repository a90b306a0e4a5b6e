"""The tests of sicompiler."""
