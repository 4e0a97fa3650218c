"""What an operator runs: imports, backup, restore, copies, diagnosis, exports, plots."""
