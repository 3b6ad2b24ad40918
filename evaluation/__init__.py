"""Stage 3: from runs to the table, its figures and the report."""
