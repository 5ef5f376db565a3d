"""Hardware: every device word lives below this package."""
