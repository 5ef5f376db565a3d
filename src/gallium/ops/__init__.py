"""The hardware seam: operations, their meaning, and how backends are found."""
