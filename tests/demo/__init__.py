"""The demo model, its data and its judge."""
