"""Which operators commute with slicing along which axis: factor maps, their registry and their rules."""
