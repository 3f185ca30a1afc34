"""Attention from packed storage in plain MLX operations, and the hook into mlx-lm's models."""
