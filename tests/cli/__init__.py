"""The command line, reports and examples."""
