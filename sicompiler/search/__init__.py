"""Searching one graph for plans: its candidates, and what lies in far memory where a budget asks for that."""
