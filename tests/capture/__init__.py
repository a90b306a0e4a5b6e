"""Capturing: the program of a call is the model's, and what can't be captured is refused."""
