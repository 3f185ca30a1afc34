"""An agent's session over HTTP: a growing history is sent again at every turn, to ``tqchat api`` and to
mlx-lm's server. Both are killed once in the middle; then several clients ask at once."""
