"""Sources of models: local folders, the Hugging Face cache, downloads."""
