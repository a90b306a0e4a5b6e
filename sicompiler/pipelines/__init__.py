"""Whole diffusers pipelines under one budget: phases, components taken over in place, what is resident when."""
