"""Planning: candidates, searches, plans and their files, offloading."""
