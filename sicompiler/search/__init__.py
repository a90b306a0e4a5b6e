"""Searching one graph for plans: its candidates, and what is offloaded where a budget asks for that."""
