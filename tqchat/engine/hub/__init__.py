"""Where models come from: local folders, the Hugging Face cache, downloads."""
