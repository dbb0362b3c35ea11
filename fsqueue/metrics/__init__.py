"""A pool's numbers over time, for other programs: `log_file`, its `history`, and `prometheus`."""
