"""Two backends side by side on one model: op by op, layer by layer, token by token."""
