"""Memory facts of a graph: sizes and aliases of storages, their lifetimes, and the timeline of live bytes."""
