"""Attention, once: views of every layout, masks, paged caches, and one tiled softmax for all attention operators."""
