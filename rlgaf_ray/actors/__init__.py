"""The roles as Ray actors: placement, dispatch of rollouts, weight pushes, recovery and the warm-ups."""
