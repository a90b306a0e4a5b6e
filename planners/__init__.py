"""Searches for the cheapest plan that fits a budget, imported as `sicompiler.planners`."""

if not __name__.startswith("sicompiler."):
    raise ImportError(f"import sicompiler.planners, not {__name__}: loading it twice would double every registry")
