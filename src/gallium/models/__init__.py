"""The GLM models, written over the seam."""
