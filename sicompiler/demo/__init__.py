"""A small trained video diffusion pipeline that ships with the package, its data and the judge of what it makes."""
