"""From a captured program to a plan, and from a plan to a rewritten program: one analysis, searches, offloading."""
