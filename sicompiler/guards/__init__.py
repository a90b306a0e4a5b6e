"""Guards: whatever a trace of a live model read is compared at every call, whatever it wrote is put back or refused.

A `ModelDescription` goes through everything a model can reach, and makes one small guard for each kind of thing it
meets. `ModuleGuards` asks them at every call; `Written` compares what one call left behind with what it began with.
"""

from sicompiler.guards.model import ModuleGuards
from sicompiler.guards.places import global_hooks
from sicompiler.guards.state import Moment, Written, keep_state, twice, watched
from sicompiler.guards.undo import Undo
from sicompiler.guards.words import changes

__all__ = ["ModuleGuards", "Moment", "Undo", "Written", "changes", "global_hooks", "keep_state", "twice", "watched"]
