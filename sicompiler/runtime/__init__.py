"""Running what was planned: the rewritten model, the memory meter, and the comparison with the untouched model."""
