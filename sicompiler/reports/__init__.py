"""Reports: plans and graphs as tables, pictures and pages."""
