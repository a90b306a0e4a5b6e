"""Graph rewrites that carry a plan out, imported as `sicompiler.passes`."""

if not __name__.startswith("sicompiler."):
    raise ImportError(f"import sicompiler.passes, not {__name__}: loading it twice would double every registry")
