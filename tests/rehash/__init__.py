"""Step Rehash: learning, plans, what they promise."""
