"""`sicompiler cache`: what is kept on disk for the next process."""

from __future__ import annotations

import typer

from sicompiler.cli.options import Json

cache = typer.Typer(
    no_args_is_help=True,
    help="Programs and plans that are kept on disk, so that the next process captures and searches nothing.",
    epilog="SICOMPILER_CACHE names another folder, or off; SICOMPILER_CACHE_BYTES how large it may grow (1 GiB).",
)


@cache.command(short_help="Where it is, and how large.")
def info(json: Json = False) -> int:
    """Tell where the cache is, how many entries it has, and how many bytes they take."""
    from sicompiler.cache.store import default_store
    from sicompiler.cli.output import show, show_json
    from sicompiler.units import format_bytes

    store = default_store()
    found = None if store is None else store.info()
    if json:
        show_json(
            {"folder": None}
            if found is None
            else {
                "folder": str(found.folder),
                "entries": found.entries,
                "total_bytes": found.total_bytes,
                "most_bytes": found.most_bytes,
            }
        )
    elif found is None:
        show("the cache is off (SICOMPILER_CACHE)")
    else:
        size, most = format_bytes(found.total_bytes), format_bytes(found.most_bytes)
        show(f"{found.folder}: {found.entries} entries, {size} of at most {most}")
    return 0


@cache.command(short_help="Remove all of it.")
def clear() -> int:
    """Remove every entry; the next call of each model is captured and planned again."""
    from sicompiler.cache.store import default_store
    from sicompiler.cli.output import show
    from sicompiler.errors import BadInput

    store = default_store()
    if store is None:
        show("the cache is off (SICOMPILER_CACHE)")
        return 0
    try:
        count = store.clear()
    except OSError as error:
        raise BadInput(f"can't clear the cache in {store.folder}: {error.strerror}") from error
    show(f"removed {count} entries from {store.folder}")
    return 0
