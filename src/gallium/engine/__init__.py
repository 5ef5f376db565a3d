"""What runs when: scheduling, sampling, the request's life."""
