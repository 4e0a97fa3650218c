"""Tasks of an operator: import, backup, restore, copy, diagnosis, export and plots."""
